"""The mechanism chapter's verdicts can fail, and what has not been played stays open."""

from itertools import product

from tools.verdicts import play

from fpo import results


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


def stored(race, clock):
    """Stored runs of spread and time scales: how many of 32 seeds fall in a cell, and from where (9.5 if not told)."""

    def ends(fallen, high=9.5):
        return {"final": [high - 3 * (seed < fallen) for seed in range(32)], "peak": [high] * 32}

    spreads = [
        {"sigma": sigma, "rm_steps": k} | ends(*race(sigma, k))
        for sigma, k in product((0.05, 0.1, 0.2, 0.4), (1, 3, 10, 30))
    ]
    scales = [
        {"policy": inner, "rm": k, "buffer": size, "arm": arm} | ends(*clock(inner, k, size))
        for inner, k, size in product((1, 2, 4, 8, 15), (1, 3, 10), ("50", "500", "all"))
        for arm in ("standard", "cost", "practical")
    ]
    return {name: {"results": {"study": {name: rows}}} for name, rows in (("sigma", spreads), ("scales", scales))}


def told(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(results, "stored_runs", lambda folder: kept)
    changes = {"seeds": [0], "linear_seeds": [0], "outer_steps": 100, "every": 25, "catch_up_steps": 10}
    verdicts, content = play("mechanism", tmp_path / "results.json", **changes)
    return {name: verdicts[name] for name in ("race", "clock")}, content["results"]


def test_the_race_and_the_clock_can_hold_and_can_fail(tmp_path, monkeypatch):
    def lags(sigma, k):  # falls under 6 (0.1 / sigma)^2 RM steps, and the wider ends higher
        return 32 * (k < 6 * (0.1 / sigma) ** 2), 9 + sigma

    def runs_ahead(inner, k, size):
        return round(32 * inner / k / 15) if size == "50" else 0, 9.5 if (inner, k, size) == (15, 1, "50") else 9.8

    verdicts, found = told(tmp_path, monkeypatch, stored(lags, runs_ahead))
    assert verdicts == {"race": "new", "clock": "new"} and found["missing"] == ["home", "remedies"]
    assert -2.5 < found["race"]["power"] < -1.5 and found["scales"]["rank"] > 0.9
    assert found["scales"]["kept"] == {arm: 43 for arm in ("standard", "cost", "practical")}
    reverse = stored(
        lambda sigma, k: (32 * (k < 6 * (sigma / 0.1) ** 2), 9 - sigma),
        lambda inner, k, size: (32 - inner, 9.5 - 3 * ((inner, k, size) != (15, 1, "50"))),
    )
    verdicts, found = told(tmp_path, monkeypatch, reverse)
    assert verdicts == {"race": "does not hold", "clock": "does not hold"} and found["scales"]["rank"] < 0
    only = {"sigma": stored(lags, runs_ahead)["sigma"]}
    assert told(tmp_path, monkeypatch, only)[0] == {"race": "new", "clock": "open"}
