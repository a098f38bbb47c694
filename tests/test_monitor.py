"""Early warning: every signal against a slow twin, the test's error rate by simulation, restarts and bad input."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, kendalltau

from fpo import monitor
from fpo.monitor import SIGNALS, Monitor, log_evidence


def rng(seed=0):
    return np.random.default_rng(seed)


# The test: evidence


def slow_evidence(values, baseline, checks, bad):
    """The docstring's formula, term by term, the later of equal values counted as the less suspect."""
    if not bad:
        return (slow_evidence(values, baseline, checks, 1) + slow_evidence(values, baseline, checks, -1)) / 2
    order = sorted(range(len(values)), key=lambda i: (bad * values[i], -i))
    found = []
    for start in range(1, checks + 1, monitor.SPACING):
        for k in monitor.POWERS:
            ratio, total = 1.0, 0.0
            for i, index in enumerate(order, start=1):
                weight = k if index >= baseline + start - 1 else 1.0
                total += weight
                ratio *= i * weight / total
            found.append(ratio)
    return float(np.mean(found))


@pytest.mark.parametrize("bad", [1, -1, 0])
def test_evidence_is_the_formula(bad):
    for seed in range(40):
        r = rng(seed)
        baseline, checks, count = int(r.integers(2, 9)), int(r.integers(1, 30)), int(r.integers(1, 40))
        values = r.integers(0, 6, count).astype(float) if seed % 2 else r.normal(size=count)
        found = np.exp(log_evidence(values, baseline, checks, bad))
        np.testing.assert_allclose(found, slow_evidence(values.tolist(), baseline, checks, bad), rtol=1e-10)


def test_evidence_of_many_runs_is_that_of_each():
    values = rng().normal(size=(3, 4, 30))
    each = [[log_evidence(row, 10, 20) for row in rows] for rows in values]
    np.testing.assert_allclose(log_evidence(values, 10, 20), each, rtol=1e-12)


@pytest.mark.parametrize("bad", [1, -1, 0])
def test_evidence_has_mean_one_over_all_orders(bad):
    """Without a change every order of the values is as likely: exactly the condition of Ville's inequality."""
    for count in range(2, 8):
        orders = np.array(list(itertools.permutations(range(count))), dtype=float)
        np.testing.assert_allclose(np.exp(log_evidence(orders, 2, 20, bad)).mean(), 1.0, rtol=1e-12)


def test_evidence_is_a_martingale_and_less_with_ties():
    """Given the order of the past, the mean over the place of the next value is the evidence before it."""
    past = rng(3).permutation(12).astype(float)
    places = np.arange(13) - 0.5
    after = np.exp([log_evidence([*past, place], 5, 20) for place in places])
    np.testing.assert_allclose(after.mean(), np.exp(log_evidence(past, 5, 20)), rtol=1e-12)
    tied = np.exp([log_evidence([*past, value], 5, 20) for value in sorted(past)])
    np.testing.assert_allclose(tied, after[:-1], rtol=1e-12)  # as one below its twin, never as one above
    assert (np.diff(after) > -1e-12).all() and after[-1] > after[0]


def false_alarms(values, baseline=20, checks=100, bound=20.0):
    """Runs of which the evidence ever passes the bound, at any check."""
    ever = np.full(len(values), -np.inf)
    for seen in range(baseline + 1, values.shape[1] + 1):
        ever = np.maximum(ever, log_evidence(values[:, :seen], baseline, checks))
    return int((ever >= np.log(bound)).sum())


RUNS = 200
DRAWS = {
    "normal": lambda r, shape: r.normal(size=shape),
    "heavy tails": lambda r, shape: r.standard_cauchy(shape),
    "few values": lambda r, shape: r.integers(0, 3, shape).astype(float),
    "a run's own scale": lambda r, shape: 3 + r.gamma(1, size=(shape[0], 1)) * r.normal(size=shape),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_false_alarms_over_all_checks_stay_under_alpha(name):
    """Fails if the rate is above 5 % with more than 99.9 % confidence; the next test shows that it can fail."""
    alarms = false_alarms(DRAWS[name](rng(11), (RUNS, 70)), checks=50)
    assert binomtest(alarms, RUNS, 0.05, alternative="greater").pvalue > 1e-3


def test_the_simulation_sees_rates_that_are_too_high():
    """Where the docstring says that the bound breaks it does: neighbors that are correlated, and a trend."""
    noise = rng(12).normal(size=(200, 120))
    for t in range(1, 120):
        noise[:, t] = 0.5 * noise[:, t - 1] + np.sqrt(0.75) * noise[:, t]
    alarms = false_alarms(noise)
    low, high = binomtest(alarms, 200).proportion_ci(0.99)
    assert 0.05 < low < 0.5 < high, "the docstring says half of the runs"
    trend = rng(13).normal(size=(50, 80)) + 0.05 * np.arange(80)
    assert false_alarms(trend) > 40


def test_a_change_is_seen_soon():
    values = rng(14).normal(size=(100, 50))
    values[:, 25:] += 4
    assert false_alarms(values[:, :35], bound=9 / 0.05) > 90


# The signals


def slow_agreement(r, u):
    found = []
    for rewards, utilities in zip(r, u, strict=True):
        asked = np.isfinite(utilities)
        tau = kendalltau(rewards[asked], utilities[asked]).statistic if asked.sum() > 1 else np.nan
        found += [tau] if np.isfinite(tau) else []
    return np.mean(found) if found else np.nan


def slow_leverage(features, data):
    size = np.mean([f @ f for f in data])
    h = sum(np.outer(f, f) for f in data) / len(data) + monitor.RIDGE * size * np.eye(data.shape[1])
    inverse = np.linalg.inv(h)
    new, old = ([f @ inverse @ f for f in rows] for rows in (features, data))
    return np.mean(new) / np.mean(old)


def slow_steering(r, u, features):
    errors, d = [], []
    for i, z in np.argwhere(np.isfinite(u)):
        asked = np.isfinite(u[i])
        if asked.sum() > 1:
            p = expit(r[i, z] - r[i, asked].mean())
            errors.append((p - expit(u[i, z] - u[i, asked].mean()), p * (1 - p)))
            d.append(features[i, z] - features[i, asked].mean(0))
    size = np.mean([row @ row for row in d])
    h = sum(w * np.outer(row, row) for row, (_, w) in zip(d, errors, strict=True)) / len(d)
    h = h + monitor.RIDGE * size * np.eye(features.shape[2])
    g = features.mean((0, 1))
    return abs(np.mean([g @ -np.linalg.solve(h, error * row) for row, (error, _) in zip(d, errors, strict=True)]))


def slow_words(texts):
    distinct, repeated = [], []
    for group in texts:
        pairs = Counter()
        for text in group:
            words = text.lower().split()
            pairs.update(zip(words, words[1:], strict=False))
            repeated.append(sum(word in words[:i] for i, word in enumerate(words)) / max(len(words), 1))
        distinct.append(len(pairs) / max(pairs.total(), 1))
    return np.mean(distinct), np.mean(repeated)


def a_record(seed, prompts=3, candidates=5, p=6):
    r = rng(seed)
    utilities = r.integers(0, 4, (prompts, candidates)).astype(float)
    utilities[r.random(utilities.shape) < 0.3] = np.nan
    words = ["a", "b", "A", "cat", ""]
    return {
        "rewards": r.integers(0, 4, (prompts, candidates)).astype(float) + 0.1 * r.random(),
        "utilities": utilities,
        "kl": r.random(prompts),
        "lengths": r.integers(0, 30, (prompts, candidates)),
        "texts": [[" ".join(r.choice(words, r.integers(0, 9))) for _ in range(candidates)] for _ in range(prompts)],
        "features": r.normal(size=(prompts, candidates, p)) * r.random(p),
        "frozen_rewards": r.normal(size=4),
    }


def last(watched, name):
    row = watched.report()["signals"][name]
    return row["latest"]


def test_each_signal_is_its_slow_twin():
    watched, data, frozen = Monitor(), np.zeros((0, 6)), None
    for step in range(20):
        given = a_record(step)
        watched.record(step, **given)
        r, u, f = given["rewards"], given["utilities"], given["features"]
        close = {"gap": np.nanmean(r - u), "agreement": slow_agreement(r, u), "steering": slow_steering(r, u, f)}
        close |= {"kl": given["kl"].mean(), "length": given["lengths"].mean()}
        close |= dict(zip(("distinct_2", "repetition"), slow_words(given["texts"]), strict=True))
        if len(data) == monitor.ROWS:
            close["leverage"] = slow_leverage(f.reshape(-1, 6), data)
        if frozen is not None:
            close["drift"] = np.abs(given["frozen_rewards"] - frozen).mean()
        for name, value in close.items():
            if np.isfinite(value):
                assert last(watched, name) == pytest.approx(value, rel=1e-8, abs=1e-10), (step, name)
        data, frozen = np.concatenate([data, f.reshape(-1, 6)])[-monitor.ROWS :], given["frozen_rewards"]
    assert set(watched.report()["signals"]) == set(SIGNALS) == set(close)


def test_steering_is_by_how_much_a_refit_moves_the_mean_reward():
    """The RM's head after one Newton step on these labels, small errors: the mean reward moves by the signal."""
    r = rng(5)
    features, w = r.normal(size=(4, 6, 3)), r.normal(size=3) * 0.2
    rewards = features @ w
    utilities = rewards + 1e-4 * r.normal(size=rewards.shape)
    d = (features - features.mean(1, keepdims=True)).reshape(-1, 3)
    p, wanted = (expit((each - each.mean(1, keepdims=True)).ravel()) for each in (rewards, utilities))
    size = (d * d).sum(1).mean()
    h = (d * (p * (1 - p))[:, None]).T @ d / len(d) + monitor.RIDGE * size * np.eye(3)
    moved = features.reshape(-1, 3).mean(0) @ np.linalg.solve(h, ((wanted - p)[:, None] * d).mean(0))
    assert monitor.steering_residual(rewards, utilities, features) == pytest.approx(abs(moved), rel=1e-10)


def test_the_gap_of_preferences_goes_before_that_of_rewards():
    watched = Monitor()
    given = {"rewards": [[1.0, 3.0]], "utilities": [[0.0, np.nan]]}
    watched.record(0, **given, p_phi=[0.75], p_star=[0.5])
    assert last(watched, "gap") == 0.25
    watched.record(1, **given)  # and is left out with them: the other gap is another signal
    assert watched.report()["signals"]["gap"]["values"] == 1
    other = Monitor()
    other.record(0, **given)
    assert last(other, "gap") == 1.0


def test_one_candidate_has_no_rank_and_nothing_asked_no_value():
    watched = Monitor()
    watched.record(0, rewards=[[1.0]], utilities=[[2.0]], features=[[[1.0, 0.0]]], frozen_rewards=[1.0])
    watched.record(1, rewards=[[1.0, 2.0]], utilities=[[np.nan, np.nan]], features=np.zeros((1, 2, 2)))
    seen = {name: row["values"] for name, row in watched.report()["signals"].items()}
    assert seen == {"gap": 1, "agreement": 0, "leverage": 0, "steering": 0, "drift": 0}


# Alarms


def a_run(length, change, seed=21):
    """KL and length; KL rises at `change`."""
    r = rng(seed)
    kl = r.random(length) + 5 * (np.arange(length) >= change)
    return [{"rewards": [[0.0]], "kl": [value], "lengths": [[r.normal()]]} for value in kl]


def test_an_alarm_names_the_signal_once_and_soon():
    watched = Monitor(baseline=10)
    told = [alarm for step, given in enumerate(a_run(60, 30)) for alarm in watched.record(step, **given)]
    assert [alarm.signal for alarm in told] == ["kl"] and 30 < told[0].step < 40
    assert told == watched.alarms and watched.report()["alarms"][0]["step"] == told[0].step
    assert told[0].bound == 2 / 0.05 <= told[0].evidence and told[0].usual < 1 < told[0].value
    assert "kl" in str(told[0]) and SIGNALS["kl"].meaning in str(told[0])


def test_alpha_is_shared_by_the_signals_that_the_first_record_announces():
    alone, shared = Monitor(), Monitor()
    alone.record(0, rewards=[[1.0]], kl=[1.0])
    shared.record(0, **a_record(0))
    assert (alone.report()["bound"], shared.report()["bound"]) == (20, 9 / 0.05)


def test_a_signal_without_a_value_in_the_first_baseline_shares_no_alpha(tmp_path):
    """One label a prompt: no rank and nothing to compare. All evidence is still 1 when K is fixed, then it stays."""
    r, path = rng(22), tmp_path / "state.npz"
    for step in range(40):
        labels = np.where(np.arange(4) == 1 if step < 30 else True, r.normal(size=(1, 4)), np.nan)
        watched = Monitor(baseline=8, path=path)  # its first leverage comes after 32 checks of 4 rows
        alarms = watched.record(
            step, rewards=r.normal(size=(1, 4)), utilities=labels, kl=[step], features=r.normal(size=(1, 4, 3))
        )
        assert watched.report()["bound"] == (5 if step < 7 else 3) / 0.05
        assert all(alarm.bound == 3 / 0.05 for alarm in alarms)
    seen = {name: (row["values"], row["evidence"]) for name, row in watched.report()["signals"].items()}
    assert seen["agreement"] == seen["steering"] == (10, None) and seen["leverage"] == (8, 1.0)
    assert [alarm.signal for alarm in watched.alarms] == ["kl"]


def test_a_monitor_goes_on_where_it_was(tmp_path):
    """Interrupted after every check, with all signals, it says what one without a break says."""
    path = tmp_path / "state.npz"
    whole, run = Monitor(baseline=12), [a_record(seed) for seed in range(30)]
    for given in run[20:]:
        given["kl"] = given["kl"] + 9
    for step, given in enumerate(run):
        whole.record(step, **given)
        watched = Monitor(baseline=12, path=path)
        watched.record(step, **given)
    assert Monitor(baseline=12, path=path).report() == whole.report() == watched.report()
    assert [alarm.signal for alarm in whole.alarms] == ["kl"] and Monitor(baseline=12, path=path).alarms == whole.alarms
    assert [each.name for each in tmp_path.iterdir()] == ["state.npz"]


def test_another_monitors_or_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    Monitor(path=path).record(0, rewards=[[0.0]], kl=[1.0])
    content = path.read_bytes()
    with pytest.raises(ValueError, match="of a monitor with"):
        Monitor(alpha=0.1, path=path)
    for damaged in (b"", b"text", content[: len(content) // 2], content[:99] + b"?" + content[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Monitor(path=path)
        assert path.read_bytes() == damaged


@pytest.mark.skipif(os.name == "nt", reason="links need a right of their own there")
def test_a_link_stays_one_and_what_is_no_file_is_refused(tmp_path):
    for place in (tmp_path, os.devnull):
        with pytest.raises(ValueError, match="damaged or no state of a monitor"):
            Monitor(path=place)
    (tmp_path / "link.npz").symlink_to(tmp_path / "far.npz")
    Monitor(path=tmp_path / "link.npz").record(0, rewards=[[0.0]])
    assert (tmp_path / "link.npz").is_symlink() and (tmp_path / "far.npz").is_file()


def test_a_full_disk_harms_nothing(tmp_path, monkeypatch):
    watched = Monitor(path=tmp_path / "state.npz")
    watched.record(0, rewards=[[0.0]], kl=[1.0])
    before, stored = watched.report(), (tmp_path / "state.npz").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="space"):
        watched.record(1, rewards=[[0.0]], kl=[1.0])
    assert watched.report() == before and (tmp_path / "state.npz").read_bytes() == stored
    assert len(list(tmp_path.iterdir())) == 1


# Bad input


GOOD = a_record(0)
BAD = {
    "rewards": [[], [[]], [1.0], [[1.0], [1.0, 2.0]], [[np.nan] * 5] * 3, "text", None, [["1", "x"]], [[1j]]],
    "utilities": [np.ones((3, 4)), np.full((3, 5), np.inf), [[None, {}]], np.ones(3)],
    "kl": [np.ones(4), [1.0, np.nan, 1.0], np.ones((3, 1)), 1.0],
    "lengths": [np.ones((5, 3)), np.full((3, 5), np.nan)],
    "texts": [["a"] * 5, [["a"] * 5] * 2, [["a"] * 4] * 3, [["a"] * 4 + [1]] * 3, "abc", [["a"] * 5, ["a"], ["a"] * 5]],
    "features": [np.ones((3, 5)), np.ones((3, 5, 0)), np.ones((3, 5, 7)), np.full((3, 5, 6), np.nan)],
    "frozen_rewards": [np.ones(5), [], [np.inf] * 4, np.ones((2, 2))],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_named_and_harms_nothing(name):
    watched = Monitor()
    watched.record(0, **GOOD)
    before = watched.report()
    for value in BAD[name]:
        with pytest.raises(ValueError, match=name) as caught:
            watched.record(1, **{**GOOD, name: value})
        assert "must be" in str(caught.value) and "\n" not in str(caught.value)
    assert watched.report() == before
    watched.record(1, **GOOD)


@pytest.mark.parametrize("step", [0, -1, 0.5, "1", True, None, 2**70])
def test_steps_go_forward(step):
    watched = Monitor()
    watched.record(0, **GOOD)
    with pytest.raises(ValueError, match="^step = "):
        watched.record(step, **GOOD)
    assert watched.step == 0


def test_an_input_that_was_not_announced_is_refused():
    watched = Monitor()
    watched.record(0, rewards=[[1.0]])
    with pytest.raises(ValueError, match="kl: not in the first record"):
        watched.record(1, rewards=[[1.0]], kl=[1.0])
    watched.record(1, rewards=[[2.0]])


@pytest.mark.parametrize(
    "bad",
    [
        {"baseline": 4},
        {"baseline": 2.5},
        {"alpha": 0},
        {"alpha": "1"},
        {"alpha": np.nan},
        {"checks": 0},
        {"checks": True},
    ],
)
def test_a_bad_setting_is_named(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))} = .*: must be a"):
        Monitor(**bad)


numbers = st.floats(allow_nan=True, width=32) | st.integers(-5, 5)
anything = st.recursive(
    numbers | st.text(max_size=3) | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=12
)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.dictionaries(st.sampled_from(sorted(GOOD)), anything, max_size=3), anything)
def test_whatever_comes_is_recorded_or_refused_in_one_line(given, step):
    watched = Monitor()
    watched.record(0, **GOOD)
    before = watched.report()
    try:
        watched.record(step, **{**GOOD, **given})
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and watched.report() == before
    else:
        assert watched.step == step > 0


# Traces and the command


def a_trace(path, lines=120, change=96):
    r = rng(31)
    with open(path, "w", encoding="utf-8") as file:
        for step in range(lines):
            line = {"step": step, "prompt": "p", "text": None, "p_phi": r.random() / 10 + 0.5 + 0.4 * (step >= change)}
            line |= {"p_star": 0.5, "kl": None, "length": r.normal(), "distinct_2": 0.5, "repetition": r.random()}
            line |= {f"{who}_{what}": r.normal() for who in ("winner", "reference") for what in ("reward", "utility")}
            file.write(json.dumps(line) + "\n")


def test_a_trace_is_read_check_by_check(tmp_path):
    path = tmp_path / "trace.jsonl"
    a_trace(path)
    watched = Monitor.from_trace(path, baseline=10)
    assert watched.step == 119 and [alarm.signal for alarm in watched.alarms] == ["gap"]
    seen = {name: row["values"] for name, row in watched.report()["signals"].items()}
    assert seen == {"gap": 30, "agreement": 30, "kl": 0, "length": 30, "distinct_2": 30, "repetition": 30}
    lines = [json.loads(line) for line in path.read_text().splitlines()[-4:]]
    mean = np.mean([line["p_phi"] - line["p_star"] for line in lines])
    assert last(watched, "gap") == pytest.approx(mean)
    order = [
        (line["winner_reward"] > line["reference_reward"]) == (line["winner_utility"] > line["reference_utility"])
        for line in lines
    ]
    assert last(watched, "agreement") == pytest.approx(2 * np.mean(order) - 1)


def test_a_trace_that_grows_is_gone_on_from(tmp_path):
    a_trace(tmp_path / "whole.jsonl")
    a_trace(tmp_path / "part.jsonl", lines=60)
    state = tmp_path / "state.npz"
    Monitor.from_trace(tmp_path / "part.jsonl", baseline=10, path=state)
    grown = Monitor.from_trace(tmp_path / "whole.jsonl", baseline=10, path=state)
    assert grown.report() == Monitor.from_trace(tmp_path / "whole.jsonl", baseline=10).report()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"[1]\n" * 9, b'{"kl": "x"}\n' * 9, b'{"a": 1}\n' * 9, b'{"kl": 1}\n', b"\xff\n" * 9]
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    assert monitor.main([str(path)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert monitor.main([str(tmp_path / "none.jsonl")]) == 1


def test_the_command_says_what_it_saw(tmp_path):
    a_trace(tmp_path / "trace.jsonl")
    command = [sys.executable, "-m", "fpo.monitor", str(tmp_path / "trace.jsonl"), "--baseline", "10"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 3 and told.stdout.count("ALARM") == 1 and "gap: 30 checks" in told.stdout
    assert not told.stderr
