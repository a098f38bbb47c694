"""The verdicts of the chapter on early warning on games that are made up: they can hold, fail and stay open."""

import numpy as np
import pytest
from tools.verdicts import play

from fpo import results
from fpo.parameters import ParameterError

DESIGN = {"seeds": 20, "outer_steps": 50, "every": 1, "probes": 4, "labeled": [1, 4]}
DESIGN |= {"baseline": 10, "alpha": 0.05, "margin": 1.0}
ARMS = ("standard", "relaxed", "practical")
NAMES = [f"{signal} {m}" for signal in ("gap", "agreement", "steering") for m in (1, 4)] + ["leverage", "drift", "kl"]


def games(warns, lies, lead=5, falls=30, when=40):
    """Two sets of 60 games, half of which fall at 40: `warns` and `lies` are shares of alarms, by signal."""
    rng, parts = np.random.default_rng(1), {}
    for part, first in (("tuning", 6000), ("judging", 7000)):
        date = [when if i < falls else -1 for i in range(60)]
        crossed = {}
        for name in NAMES:
            alarm, lie = (share.get(name.split()[0], 0.0) for share in (warns, lies))
            alarms = [rng.random() < (alarm if d > 0 else lie) for d in date]
            crossed[name] = [" ".join([str(when - lead)] * 30) if a else "" for a in alarms]
        parts[part] = {
            "arm": [arm for arm in ARMS for _ in range(20)], "seed": [*range(first, first + 20)] * 3, "date": date,
            "peak": [5.0] * 60, "final": [2.0] * 60, "crossed": crossed,
        }  # fmt: skip
    provenance = {"wall_seconds": 600.0}
    return {"games": {"parameters": DESIGN, "results": {"games": parts, "provenance": provenance}}}


def a_text_run(seed, end, gap, stage="judged"):
    """A stored run of the language model whose utility ends at `end`; from window 12 on its gap is larger by `gap`."""
    rng = np.random.default_rng(seed)
    trace = {name: rng.normal(size=32).tolist() for name in ("reward", "length", "distinct_2", "repetition", "p_star")}
    trace["p_phi"] = (np.array(trace["p_star"]) + rng.normal(size=32) + gap * (np.arange(32) > 12)).tolist()
    looks = zip((0, 64, 128), (2.5, 2.4, end), strict=True)
    watched = [{"position": at, "heldout": {"utility": rng.normal(mean, 1.0, 84).tolist()}} for at, mean in looks]
    return {"stage": stage, "winners": [0] * 128, "trace": trace, "watched": watched}


def texts(end, gap):
    found = {f"pilot-{seed}": a_text_run(seed, 2.5, 0, "pilot") for seed in range(4)}
    return found | {f"planted-{seed}": a_text_run(10 + seed, end, gap) for seed in range(12)}


@pytest.fixture
def verdicts(monkeypatch, tmp_path):
    def of(played, told, figures=False, **values):
        stored = {"early_warning": played, "llm_study": told}
        monkeypatch.setattr(results, "stored_runs", lambda folder: stored[folder])
        return play("early_warning", tmp_path / "results.json", figures, **DESIGN, **values)

    return of


def test_a_signal_that_warns_and_a_placebo_that_does_not(verdicts):
    warns = {"gap": 1.0, "agreement": 0.5, "steering": 0.0, "drift": 1.0}
    found, content = verdicts(games(warns, {"drift": 1.0}), texts(0.5, 9.0), figures=True)
    # Leverage has a value from the 33rd check on: it could not have warned, and nothing is decided.
    expected = {"gap": "new", "agreement": "open", "steering": "does not hold", "leverage": "open"}
    # It warns of all falls, and would not be silent in any run that holds: tuned, it says nothing.
    expected |= {"drift": "does not hold", "shipped": "does not hold", "llm": "new", "drift-apart": "open"}
    assert found == expected
    found = content["results"]
    assert found["recommended"] == ["warning-gap"] and found["rates"]["drift"]["shipped_warned"]["wins"] == 30
    assert found["rates"]["gap"]["lead"] == 5 and found["rates"]["drift"]["warned"]["wins"] == 0
    assert (found["falls"], found["holds"], found["runs"]) == (30, 30, 120)
    assert [found["rates"][name]["shipped_possible"] for name in ("gap", "drift", "leverage")] == [30, 30, 0]
    assert found["rates"]["gap"]["possible"] == 30 and found["rates"]["drift"]["possible"] == 0
    assert found["rates"]["gap"]["clock"] == 0 and found["rates"]["drift"]["clock"] == 1
    assert found["rates"]["gap"]["beyond"] == 30 and found["rates"]["gap"]["behind"] == 0
    assert (found["by_seed"]["wins"], found["by_seed"]["pairs"]) == (20, 20)
    assert [row["falls"] for row in found["arms"].values()] == [20, 10, 0]
    assert found["arms"]["relaxed"]["gap"] == {"warned": 10, "false": 0}
    assert found["llm"]["falls"] == 12 and found["llm"]["signals"]["gap"]["warned"] >= 10


def test_no_signal_says_more_than_the_distance(verdicts):
    """All warn of every fall, the placebo too: none is recommended, and none is refuted."""
    everything = dict.fromkeys(("gap", "agreement", "steering", "leverage", "drift", "kl"), 1.0)
    found, content = verdicts(games(everything, {}), texts(0.5, 0.0))
    assert {found[name] for name in ("gap", "agreement", "steering", "leverage", "drift")} == {"open"}
    assert content["results"]["recommended"] == [] and found["shipped"] == "new" and found["llm"] == "does not hold"


def test_nothing_is_decided_where_too_few_warnings_were_possible(verdicts):
    """Every run falls before evidence can pass the bound: no signal fails, whatever it says."""
    found, content = verdicts(games({"gap": 1.0}, {"drift": 1.0}, when=15), texts(0.5, 0.0))
    assert {found[name] for name in ("gap", "agreement", "steering", "leverage", "drift")} == {"open"}
    rates, needed = content["results"]["rates"], content["results"]["needed"]
    assert all(row["shipped_possible"] == 0 for row in rates.values()) and 15 < needed < 30
    (value,) = [claim["value"] for claim in content["claims"] if claim["id"] == "warning-gap"]
    assert value.startswith(f"could not be decided: at most 0 of 30 warnings were possible and the rule needs {needed}")
    assert content["results"]["too_early"] == 30 and found["shipped"] == "does not hold"


def test_a_warning_that_comes_late_is_none(verdicts):
    found, content = verdicts(games({"gap": 1.0}, {}, lead=0), texts(2.5, 0.0))
    assert found["gap"] == "does not hold" and content["results"]["rates"]["gap"]["warned"]["wins"] == 0
    assert found["llm"] == "open" and content["results"]["llm"]["falls"] == 0


def second_round(tuning, judging):
    """The first round, undecided, and the second: its tuning sets and its judging sets."""
    stored = games({"gap": 1.0}, {}, when=15)
    for name, (warns, lies) in {"often": tuning, "fresh": judging}.items():
        part = games(warns, lies)["games"]
        signals = ("gap", "agreement", "steering", "leverage", "drift", "kl")
        row = {"level": 0, **{key: {"wins": 0} for key in ("shipped_warned", "shipped_false", "warned")}}
        rows = dict.fromkeys(signals, row)
        told = {"rates": rows, "possible": 20, "holds": 30, "any_false": {"wins": 0}}
        stored[name] = {"parameters": DESIGN, "results": part["results"] | told}
    return stored


def test_the_second_round_judges_where_the_first_could_not(verdicts):
    tuning = ({}, {"steering": 1.0})
    warns = {"gap": 1.0, "agreement": 0.9, "steering": 1.0, "drift": 0.6}
    found, content = verdicts(second_round(tuning, (warns, {"agreement": 0.5, "steering": 1.0})), texts(0.5, 0.0))
    # The agreement errs; steering would not be silent in the tuning sets, so that tuned it says nothing; the leverage
    # comes too late for any warning.
    expected = {"gap": "new", "agreement": "does not hold", "steering": "does not hold", "leverage": "open"}
    assert {name: found[name] for name in expected} == expected and found["drift"] in ("new", "open")
    assert found["drift-apart"] == "new"
    told = content["results"]["again_round"]
    assert (told["runs"], told["falls"], told["holds"]) == (120, 60, 60) and 30 < told["needed"] < 60
    assert told["rates"]["steering"]["level"] == 30 and told["rates"]["gap"]["warned"]["wins"] == 60
    assert {arm: row["falls"] for arm, row in told["by_arm"].items()} == {"standard": 40, "relaxed": 20, "practical": 0}
    warned = [row["warned"] for row in told["by_arm"].values()]
    assert sum(warned) == told["drift"]["wins"] == told["spoken"] and told["share"] == 0.5 and told["precision"] == 1
    assert told["lead"] == {"median": 5, "median_up": 6, "soon": told["drift"]["wins"], "late": 0}
    assert told["by_date"]["before"] == {"falls": 60, "warned": told["drift"]["wins"]} and told["seeds"] == 40
    # No run that holds has an alarm of the drift: the difference within arms is the share of warned falls.
    low, high = told["apart"]
    assert low < told["warned_share"] < high and told["rates"]["drift"]["within"] == 0


def test_a_drift_that_alarms_as_often_in_runs_that_hold_tells_nothing_apart(verdicts):
    found, _ = verdicts(second_round(({}, {}), ({"drift": 0.5}, {"drift": 0.5})), texts(0.5, 0.0))
    assert found["drift-apart"] in ("open", "does not hold") and found["drift"] == "does not hold"


def test_other_settings_than_the_stored_games_are_refused(verdicts):
    stored = games({}, {})
    stored["games"]["parameters"] = DESIGN | {"margin": 2.0}
    with pytest.raises(ParameterError, match="margin = 1.0: the stored games have 2.0"):
        verdicts(stored, {})
    with pytest.raises(ParameterError, match="no run that falls"):
        verdicts(games({}, {}, falls=0), {})


def test_bad_parameters_end_the_notebook_at_once(tmp_path):
    with pytest.raises(ParameterError, match="every = 0") as caught:
        play("early_warning", tmp_path / "out.json", every=0, llm_runs="../x", study="maybe")
    assert "llm_runs = " in str(caught.value) and "study = " in str(caught.value)
    with pytest.raises(ParameterError, match=r"first_seeds = \[5, 20\]: must be two, with at least seeds = 36"):
        play("early_warning", tmp_path / "out.json", first_seeds=[5, 20])
    with pytest.raises(ParameterError, match="labeled = "):
        play("early_warning", tmp_path / "out.json", labeled=[0])
    assert not list(tmp_path.iterdir())
