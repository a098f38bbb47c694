"""The mechanism chapter's verdicts can fail, and what has not been played stays open."""

from tools.verdicts import play


def test_where_no_slope_counts_nothing_is_shown(tmp_path):
    verdicts, _ = play(
        "mechanism",
        tmp_path / "results.json",
        seeds=[0],
        study_seeds=list(range(14)),
        linear_seeds=list(range(14)),
        outer_steps=100,
        every=25,
        catch_up_steps=10,
        slope_floor=100.0,
        study="run",
        parts=["home"],
    )
    assert verdicts == {
        "level": "open",
        "modes": "new",  # the spectrum is what it is, whatever slopes count
        "power": "open",  # the steps are too few
        "plane": "open",
        "score": "open",
        "lag": "open",
        "trust": "open",
        "no-part": "open",
        "race": "open",
        "clock": "open",
        "linear": "open",
    }
