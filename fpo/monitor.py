"""Early warning for iterative RLHF: numbers of a run in, alarms out. NumPy only.

`Monitor.record` turns what a check of a run gives into at most nine signals (`SIGNALS`; RM is the reward model), and
compares each with the run's own first `baseline` values by a sequential rank test.

The test. If a change comes at check s and turns a signal's distribution F into F^k (k > 1: larger values), the ranks of
all N values so far have, relative to ranks without a change, the likelihood ratio

    E_s,k = N! k^n / prod_i S_i,    S_i = (old) + k (new) among the i smallest values,

with n new values, those of check s and later, and the others old (Lehmann 1953 for the alternatives, Savage 1956 for
their rank probabilities; used sequentially by Wilcoxon, Rhodes and Bradley 1963). The evidence is their mean over k =
3, 20, over s = 1, 6, 11, .. up to `checks`, and over both directions for a signal that may move in either. Without a
change it is a martingale of mean 1 and, by Ville's inequality (1939; Ramdas et al. 2023), ever exceeds K / alpha with
probability at most alpha / K: any false alarm, of whatever signal at whatever check, has at most alpha, however the
signals depend on each other. K counts the signals with a value by the time that the first baseline is complete, when
all evidence is 1; others are watched no more, but for leverage, which waits for `ROWS` rows.

What is assumed: without a change, a signal's values are exchangeable, as independent draws are, and what is missing
says nothing about their order. A short baseline costs power, not validity. What breaks it: values correlated in time
(with 0.5 between neighbors, half of all runs raise a false alarm from a signal alone: check less often) and any trend,
as in a policy that learns: most games of the book that hold raise an alarm. No signal passed the book's rule for a
recommendation. An early alarm of the drift alone told falls apart; the others are clocks: label a few outputs, no more.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
POWERS = (3.0, 20.0)
SPACING = 5  # checks between the starts of a change that are looked for
ROWS = 128  # features of the latest candidates, which stand for the RM's data
RIDGE = 0.01  # of the second moment of features, in units of their mean squared length
TRACED = ("p_phi", "p_star", "winner_reward", "reference_reward", "winner_utility", "reference_utility")


class Signal(NamedTuple):
    """What a signal needs of a record, where it moves when things go wrong (1 up, -1 down, 0 either), what it says."""

    needs: tuple[str, ...]
    bad: int
    meaning: str


SIGNALS = {
    "gap": Signal(("rewards", "utilities"), 1, "the RM rates candidates higher than their labels do"),
    "agreement": Signal(("rewards", "utilities"), -1, "the RM ranks a prompt's candidates worse than it did"),
    "leverage": Signal(("features",), 1, "candidates lie where the latest ones did not"),
    "steering": Signal(("rewards", "utilities", "features"), 1, "one more fit would move the RM's mean reward"),
    "drift": Signal(("frozen_rewards",), 1, "the RM changes its mind about frozen texts faster than it did"),
    "kl": Signal(("kl",), 1, "the policy is farther from its base"),
    "length": Signal(("lengths",), 0, "responses have another length"),
    "distinct_2": Signal(("texts",), -1, "a prompt's candidates share more pairs of words"),
    "repetition": Signal(("texts",), 1, "responses repeat words"),
}


@dataclass(frozen=True)
class Alarm:
    """A signal whose evidence has passed the bound: at which step, its value there, and its median in the baseline."""

    signal: str
    step: int
    value: float
    usual: float
    evidence: float
    bound: float

    def __str__(self) -> str:
        moved = f"step {self.step}: {self.signal} is {self.value:.3g}, usually {self.usual:.3g}"
        return f"{moved} ({SIGNALS[self.signal].meaning}; evidence {self.evidence:.3g}, bound {self.bound:.3g})"


def log_evidence(values: Any, baseline: int, checks: int, bad: int = 1) -> np.ndarray:
    """Logarithm of the evidence that a signal has changed, (..., N) to (...): leading axes are runs.

    `values` are in their order, the first `baseline` of them before any change; `checks` is as in `Monitor`; `bad` is 1
    for a change to larger values, -1 to smaller ones, 0 for either.
    """
    values = np.asarray(values, dtype=float)
    if not bad:
        return np.logaddexp(*(log_evidence(values, baseline, checks, way) for way in (1, -1))) - np.log(2)
    count = values.shape[-1]
    # Of equal values the later counts as the less suspect, which can only lower the evidence.
    order = count - 1 - np.argsort(bad * values[..., ::-1], axis=-1, kind="stable")
    starts = np.arange(baseline, baseline + checks, SPACING)
    future = len(POWERS) * int((starts >= count).sum())  # a start that is still to come has a ratio of 1
    new = np.cumsum(order[..., None, :] >= starts[starts < count, None], axis=-1)
    each = [new[..., -1] * np.log(k) - np.log1p((k - 1) * new / np.arange(1, count + 1)).sum(-1) for k in POWERS]
    found = np.concatenate([*each, np.zeros((*values.shape[:-1], future))], axis=-1)
    return np.logaddexp.reduce(found, axis=-1) - np.log(len(POWERS) * len(starts))


def agreement(rewards: np.ndarray, utilities: np.ndarray) -> float:
    """Kendall's tau-b of reward and utility among a prompt's labeled candidates, the mean over prompts; NaN without."""
    signs = [np.sign(each[:, :, None] - each[:, None, :]) for each in (rewards, utilities)]
    r, u = (np.where(np.isfinite(signs[1]), each, 0.0) for each in signs)
    scale = np.sqrt((r * r).sum((1, 2)) * (u * u).sum((1, 2)))
    some = scale > 0
    return float(((r * u).sum((1, 2))[some] / scale[some]).mean()) if some.any() else np.nan


def _solve(data: np.ndarray, weights: np.ndarray, ridge: float, v: np.ndarray) -> np.ndarray:
    """(sum_i w_i f_i f_i^T + ridge I)^-1 v by an n x n matrix: data (n, p), weights (n,), v (m, p)."""
    rows = np.sqrt(weights)[:, None] * data
    return (v - np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), rows @ v.T).T @ rows) / ridge


def leverage_ratio(features: np.ndarray, data: np.ndarray) -> float:
    """Mean of f^T H^-1 f over the candidates' features (m, p) over that of the data's (n, p); NaN where these are 0.

    H = mean of f f^T over the data + RIDGE (mean of |f|^2) I.
    """
    if not data.any():
        return np.nan
    gram, across = data @ data.T / len(data), features @ data.T / np.sqrt(len(data))
    inverse = np.linalg.inv(gram + (ridge := RIDGE * np.trace(gram)) * np.eye(len(data)))
    h = ((features * features).sum(1) - ((across @ inverse) * across).sum(1)) / ridge
    return float(h.mean() / (gram * inverse).sum())  # the data's own mean is a trace


def steering_residual(rewards: np.ndarray, utilities: np.ndarray, features: np.ndarray) -> float:
    """|mean over labeled candidates z of <g_bar, I(z)>|, I(z) = -H^-1 (p - p*) d: NaN where nothing can be compared.

    p = sigmoid(r_z - r_mean), p* = sigmoid(U_z - U_mean), d = f_z - f_mean, all means over the prompt's labeled
    candidates; g_bar is the mean feature of all, H = mean of p (1 - p) d d^T + RIDGE (mean |d|^2) I. To first order it
    is by how much a refit on these labels moves the RM's mean reward (Gauthier et al. 2026, the steering term).
    """
    asked = np.isfinite(utilities) & (np.isfinite(utilities).sum(1, keepdims=True) > 1)

    def centered(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        values = np.where(mask, values, 0.0)
        return values - values.sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1)

    d = centered(features, asked[..., None])[asked]
    if not (size := float((d * d).sum() / max(len(d), 1))) > 0:
        return np.nan
    p, wanted = (0.5 + 0.5 * np.tanh(centered(each, asked)[asked] / 2) for each in (rewards, utilities))
    adjoint = _solve(d, p * (1 - p) / len(d), RIDGE * size, features.mean((0, 1))[None])[0]
    return abs(float(np.mean((p - wanted) * (d @ adjoint))))


def _words(texts: Any) -> tuple[float, float]:
    """Shares of distinct pairs of neighboring words of a prompt's candidates, and of words that stood before."""
    words = [[text.lower().split() for text in group] for group in texts]
    pairs = [[pair for own in group for pair in zip(own, own[1:], strict=False)] for group in words]
    distinct, repeated = ([len(set(row)) / max(len(row), 1) for row in rows] for rows in (pairs, sum(words, [])))
    return float(np.mean(distinct)), float(np.mean([1 - share if share else 0.0 for share in repeated]))


def _array(name: str, given: Any, shape: tuple[int | None, ...], missing: bool = False) -> np.ndarray:
    wanted = ", ".join("n" if length is None else str(length) for length in shape)
    allowed = f"must be finite numbers{', or NaN where not asked,' * missing} of shape ({wanted})"
    try:
        found = np.array(given, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: {allowed}") from None
    fits = found.size and len(found.shape) == len(shape) and all(map(lambda a, b: a in (None, b), shape, found.shape))
    if not fits or not (np.isfinite(found) | (missing & np.isnan(found))).all():
        raise ValueError(f"{name} of shape {found.shape}: {allowed}")
    return found


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} = {str(value)[:40]}: must be a whole number from {low:,} to {high:,}")
    return int(value)


class Monitor:
    """Watches a run and raises alarms: see the module's text. `step` is the last recorded, `alarms` are all so far.

    Parameters
    ----------
    baseline : int
        How many first values of a signal are what is usual: 5 to 1000.
    alpha : float
        Bound of the probability of any false alarm, for the whole monitor: all signals, all checks. 0.0001 to 0.5.
    checks : int
        Over how many checks after the baseline the start of a change is looked for: 1 to 10,000.
    path : path, optional
        A file that keeps the state (NumPy's npz). One that is there is gone on from.

    Raises
    ------
    ValueError
        For a value outside its range, or a file that is damaged or of a monitor with other settings.
    """

    def __init__(
        self, *, baseline: int = 20, alpha: float = 0.05, checks: int = 100, path: str | os.PathLike | None = None
    ) -> None:
        self.baseline, self.checks = _whole("baseline", baseline, 5, 1000), _whole("checks", checks, 1, 10_000)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 1e-4 <= alpha <= 0.5:
            raise ValueError(f"alpha = {str(alpha)[:40]}: must be a number from 0.0001 to 0.5")
        self.alpha, self.path = float(alpha), None if path is None else Path(os.path.realpath(path))  # links stay links
        self.settings = {"baseline": self.baseline, "alpha": self.alpha, "checks": self.checks}
        self.step: int | None = None
        self.alarms: list[Alarm] = []
        self._inputs: list[str] = []  # what the first record gave
        self._values: dict[str, list[float]] = {}  # of the signals that it announced
        self._evidence: dict[str, float] = {}  # of the signals that share alpha, the largest logarithm so far
        self._kept: Arrays = {}  # the latest features, the frozen texts' last rewards
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def record(
        self, step: int, *, rewards: Any, utilities: Any = None, p_phi: Any = None, p_star: Any = None, kl: Any = None,
        lengths: Any = None, texts: Any = None, features: Any = None, frozen_rewards: Any = None,
    ) -> list[Alarm]:  # fmt: skip
        """One check: the alarms that are raised now for the first time. After an error nothing is recorded.

        What the first record gives says which signals may be watched; a later one may leave inputs out.

        Parameters
        ----------
        step : int
            Larger than the last one.
        rewards, utilities : arrays (prompts, candidates)
            The RM's rewards r of what the policy wrote now; labels U, NaN where not asked.
        p_phi, p_star : arrays (prompts,)
            The RM's and the labels' probability that the winner beats its reference. With both, the gap is the mean of
            p_phi - p_star; without, that of r - U over labeled candidates, which wants both on one scale.
        kl, lengths, texts : (prompts,), (prompts, candidates) twice
            Divergence from the base; numbers, and strings.
        features : array (prompts, candidates, p)
            What the RM's head reads, or its gradient. The last 128 rows, labeled or not, stand for its data.
        frozen_rewards : array (n,)
            The RM's rewards now of texts that stay the same: drift is their mean absolute change since the last ones.

        Raises
        ------
        ValueError
            For an input that is not as described, or that the first record did not have.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "step") and value is not None}
        if self._inputs and (new := [name for name in given if name not in self._inputs]):
            raise ValueError(f"{', '.join(new)}: not in the first record, which says what is watched")
        r = _array("rewards", rewards, (None, None))
        shapes: dict[str, tuple[int | None, ...]] = {"rewards": r.shape, "utilities": r.shape, "lengths": r.shape}
        shapes |= dict.fromkeys(("p_phi", "p_star", "kl"), r.shape[:1])
        for name, shape in (("features", r.shape), ("frozen_rewards", ())):
            shapes[name] = (*shape, self._kept[name].shape[-1] if name in self._kept else None)
        for name in [name for name in shapes if name in given]:
            given[name] = _array(name, given[name], shapes[name], name == "utilities")
        words = np.array(texts, dtype=object)
        if "texts" in given and not (words.shape == r.shape and all(isinstance(text, str) for text in words.flat)):
            raise ValueError(f"texts: must be {r.shape[0]} lists of {r.shape[1]} strings")
        return self._check(step, *self._signals(given), sorted(given))

    def _signals(self, given: dict[str, Any]) -> tuple[dict[str, float], Arrays]:
        """The signals of a record, NaN for those announced without a value, and what is kept of it."""
        values = {name: np.nan for name, signal in SIGNALS.items() if set(signal.needs) <= set(given)}
        kept, r, u = dict(self._kept), given["rewards"], given.get("utilities")
        if {"p_phi", "p_star"} <= set(given):
            values["gap"] = float(np.mean(given["p_phi"] - given["p_star"]))
        elif u is not None and np.isfinite(u).any() and not {"p_phi", "p_star"} <= set(self._inputs):
            values["gap"] = float(np.nanmean(r - u))
        values |= {} if u is None else {"agreement": agreement(r, u)}
        values |= {name: float(np.mean(given[of])) for name, of in (("kl", "kl"), ("length", "lengths")) if of in given}
        if "texts" in given:
            values["distinct_2"], values["repetition"] = _words(given["texts"])
        if "features" in given:
            new = given["features"].reshape(-1, given["features"].shape[2])
            before = kept.get("features", new[:0])
            if len(before) == ROWS:
                values["leverage"] = leverage_ratio(new, before)
            if u is not None:
                values["steering"] = steering_residual(r, u, given["features"])
            kept["features"] = np.concatenate([before, new])[-ROWS:]
        if "frozen_rewards" in given:
            values["drift"] = float(np.mean(np.abs(given["frozen_rewards"] - kept.get("frozen_rewards", np.nan))))
            kept["frozen_rewards"] = given["frozen_rewards"]
        return values, kept

    def _check(self, step: int, values: dict[str, float], kept: Arrays, inputs: list[str]) -> list[Alarm]:
        step = _whole("step", step, -(2**53), 2**53)
        if self.step is not None and step <= self.step:
            raise ValueError(f"step = {step}: must be larger than the last one recorded, {self.step}")
        series = {name: list(self._values.get(name, ())) for name in (values if self.step is None else self._values)}
        for name, row in series.items():
            row += [value for value in [values.get(name, np.nan)] if np.isfinite(value)]
        evidence = dict(self._evidence)
        if not evidence and any(len(row) >= self.baseline for row in series.values()):
            evidence = {name: 0.0 for name, row in series.items() if row or name == "leverage"}
        alarms, bound = list(self.alarms), len(evidence) / self.alpha
        for name, row in [(name, series[name]) for name in evidence]:
            if len(row) <= self.baseline or len(row) == len(self._values.get(name, ())):
                continue
            latest = float(log_evidence(row, self.baseline, self.checks, SIGNALS[name].bad))
            evidence[name] = max(evidence[name], latest)
            if latest >= np.log(bound) and name not in [alarm.signal for alarm in alarms]:
                usual = float(np.median(row[: self.baseline]))
                alarms.append(Alarm(name, step, values[name], usual, float(np.exp(min(latest, 700.0))), bound))
        state = {"_inputs": self._inputs or inputs, "_values": series, "_evidence": evidence, "step": step}
        if self.path is not None:
            self._save(self.path, state | {"alarms": [asdict(alarm) for alarm in alarms]}, kept)
        new = alarms[len(self.alarms) :]
        vars(self).update(state, alarms=alarms, _kept=kept)
        return new

    def report(self) -> dict[str, Any]:
        """Settings and alarms; for each signal its values seen, the usual and latest one, and the largest evidence."""
        signals: dict[str, dict[str, Any]] = {}
        for name, row in self._values.items():
            usual, latest = (float(np.median(row[: self.baseline])), row[-1]) if row else (None, None)
            most = float(np.exp(min(self._evidence[name], 700.0))) if name in self._evidence else None
            signals[name] = {"values": len(row), "usual": usual, "latest": latest, "evidence": most}
        found = {"step": self.step, "bound": len(self._evidence or signals) / self.alpha, "signals": signals}
        return self.settings | found | {"alarms": [asdict(alarm) for alarm in self.alarms]}

    @classmethod
    def from_trace(cls, trace: str | os.PathLike, *, every: int = 4, **settings: Any) -> "Monitor":
        """A monitor that has seen a stored trace: JSON lines as `fpo.llm` writes them, of which `every` make a check.

        A line is a prompt, with any of `p_phi` and `p_star`, `kl`, `length`, `distinct_2`, `repetition`, and reward and
        utility of `winner` and `reference`; what is null in one is left out of its check. `settings`: of `Monitor`.

        Raises
        ------
        ValueError
            If a line is no JSON object with numbers under these names, or the first has none of them.
        """
        monitor, every = cls(**settings), _whole("every", every, 1, 100_000)
        lines = [_line(f"{trace}, line {i}", text) for i, text in enumerate(Path(trace).read_bytes().splitlines(), 1)]
        names = set(lines[0] if lines else ()) & {*TRACED, *SIGNALS}
        for at in range(0, len(lines) - every + 1, every):
            row = {name: np.array([line.get(name, np.nan) for line in lines[at : at + every]]) for name in names}
            values = {name: float(row[name].mean()) for name in SIGNALS if name in names}
            if {"p_phi", "p_star"} <= names:
                values["gap"] = float((row["p_phi"] - row["p_star"]).mean())
            if set(TRACED[2:]) <= names:
                pairs = np.array([row[name] for name in TRACED[2:]])
                values["agreement"] = agreement(pairs[:2].T, pairs[2:].T)
            step = int(np.nan_to_num(lines[at + every - 1].get("step", np.nan), nan=at + every - 1))
            if monitor.step is None or step > monitor.step:  # a state that was gone on from has seen it
                monitor._check(step, values, {}, sorted(names))
        if not monitor._values:
            raise ValueError(f"{trace}: has not {every} lines with {', '.join(TRACED)} or others of a trace")
        return monitor

    def _save(self, path: Path, state: dict[str, Any], kept: dict[str, Any]) -> None:
        temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}")
        try:
            with open(temporary, "wb", buffering=0) as file:
                np.savez(file, state=json.dumps(self.settings | state), **kept)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                state = json.loads(str(file["state"]))
                self._kept = {name: file[name] for name in file.files if name != "state"}
            before = {name: state.pop(name) for name in self.settings}
            vars(self).update(state, alarms=[Alarm(**each) for each in state["alarms"]])
        except Exception as error:  # NumPy, zipfile and json each have their own for other bytes
            raise ValueError(f"{path} is damaged or no state of a monitor: name another to start afresh") from error
        if before != self.settings:
            raise ValueError(f"{path} is of a monitor with {before}, this one has {self.settings}")


def _line(where: str, text: bytes) -> dict[str, float]:
    try:
        row = json.loads(text)
        return {k: float(np.nan if row[k] is None else row[k]) for k in {"step", *TRACED, *SIGNALS} & set(row)}
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise ValueError(f"{where}: must be a JSON object with numbers, as in a trace of fpo.llm") from None


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status: 0 without an alarm, 3 with one, 1 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m fpo.monitor", description="Look for early warnings in a trace.")
    parser.add_argument("file", help="a trace.jsonl, as python -m fpo.llm writes it")
    for name, default in (("baseline", 20), ("alpha", 0.05), ("checks", 100), ("every", 4)):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"see Monitor; default {default}")
    given = vars(parser.parse_args(arguments))
    try:
        monitor = Monitor.from_trace(given.pop("file"), **given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, row in monitor.report()["signals"].items():
        print(f"{name}: {row['values']} checks, largest evidence {row['evidence'] or 'none'}")
    for alarm in monitor.alarms:
        print(f"ALARM {alarm}")
    return 3 if monitor.alarms else 0


if __name__ == "__main__":
    sys.exit(main())
