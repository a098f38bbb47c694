"""What a study consists of: which runs, in which order, and with which weights, as far as its files say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fpo import results
from fpo.llm.settings import PAIRWISE, Settings, settings
from fpo.parameters import ParameterError


def read_study_run(path: Path) -> dict[str, Any]:
    """The content of a run's file.

    Raises
    ------
    ValueError
        If it is damaged or holds something else.
    """
    run = results.read_run(path)
    if missing := {"settings", "weight", "watched", "winners", "provenance"} - set(run):
        raise ValueError(f"{path} is no run of a study: it has no {sorted(missing)[0]!r}")
    return run


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes
    ----------
    setting, arm : str
    weight : float, optional
        gamma in units of the spread of the reward over that of the penalty; None for arms without one.
    seed : int
    stage : str
        `pilot`, `tuning` or `judged`.
    settings : Settings
    """

    setting: str
    arm: str
    weight: float | None
    seed: int
    stage: str
    settings: Settings

    @property
    def name(self) -> str:
        """The name of its file, without its ending."""
        tuned = f"@{self.weight:g}" if self.stage == "tuning" else ""
        pilot = "pilot-" if self.stage == "pilot" else ""
        return f"{self.setting}-{pilot}{self.arm}{tuned}-{self.seed}"


class Plan:
    """What a study consists of, and what of it is there.

    Parameters
    ----------
    content : mapping
        `common`: settings of every run. `settings`: by name, what each changes. `arms`: by name, what each changes,
        with `weights` if one is tuned (a single one is taken as it is), or `weight_of` another arm. `tuning`: setting,
        seeds, pilots (seeds). `judged`: a list of setting, arms, seeds. `watch_at`: positions. `group`: runs in a
        batch.
    out : path
        The folder of the files.
    file : path
        Where the content stands, for the runs' provenance.

    Raises
    ------
    ParameterError
        If it holds something else.
    """

    def __init__(self, content: Mapping[str, Any], out: Path, file: Path = Path("PLAN.yaml")) -> None:
        self.content, self.out, self.file = content, out, file
        wanted = {"common", "settings", "arms", "tuning", "judged", "watch_at", "group"}
        if not isinstance(content, Mapping) or set(content) != wanted:
            raise ParameterError(f"plan: must have the entries {', '.join(sorted(wanted))}")
        for part in content["judged"]:
            for kind, names in (("settings", [part["setting"]]), ("arms", part["arms"])):
                if unknown := [name for name in names if name not in content[kind]]:
                    raise ParameterError(f"plan: judged: {unknown[0]!r} is none of its {kind}")
        for arm in content["arms"]:
            self._settings(content["tuning"]["setting"], arm, 0, 1.0)
        for name in content["settings"]:
            if (oracle := self._settings(name, next(iter(content["arms"])), 0, None).oracle).startswith(PAIRWISE):
                raise ParameterError(
                    f"plan: settings: {name}: oracle = {oracle!r}: held-out prompts have no response to compare with"
                )

    def _settings(self, setting: str, arm: str, seed: int, gamma: float | None) -> Settings:
        changed = {**self.content["common"], **self.content["settings"][setting], **self.content["arms"][arm]}
        changed = {name: value for name, value in changed.items() if name not in ("weights", "weight_of")}
        return settings(**changed | {"seed": seed} | ({} if gamma is None else {"gamma": gamma}))

    def _read(self, jobs: Iterable[Job]) -> list[dict[str, Any]] | None:
        """The files of these runs; None if one is missing."""
        paths = [self.out / f"{job.name}.json" for job in jobs]
        if not all(path.exists() for path in paths):
            return None
        return [read_study_run(path) for path in paths]

    def pilots(self) -> list[Job]:
        """Standard runs on seeds of their own, in which the spread of every penalty is seen."""
        setting, seeds = (self.content["tuning"][name] for name in ("setting", "pilots"))
        return [
            Job(setting, "standard", None, seed, "pilot", self._settings(setting, "standard", seed, None))
            for seed in seeds
        ]

    def units(self) -> dict[str, float] | None:
        """By rule: the mean spread of the reward over that of the penalty, in the pilots; None before they are done."""
        found = self._read(self.pilots())
        if found is None:
            return None
        spreads = {name: np.mean([run["spreads"][name] for run in found]) for name in found[0]["spreads"]}
        return {name: float(spreads["reward"] / value) for name, value in spreads.items() if name != "reward"}

    def _weights(self, arm: str) -> list[float]:
        return self.content["arms"][arm].get("weights", [])

    def tuning(self) -> list[Job]:
        """Every weight of every arm that has several, on the tuning seeds; nothing before the pilots are done."""
        setting, seeds = (self.content["tuning"][name] for name in ("setting", "seeds"))
        units = self.units()
        if units is None:
            return []
        return [
            Job(setting, arm, weight, seed, "tuning", self._settings(setting, arm, seed, weight * units[rule]))
            for seed in seeds
            for arm, changes in self.content["arms"].items()
            for rule in [changes["rule"]]
            for weight in self._weights(arm)
            if len(self._weights(arm)) > 1
        ]

    def chosen(self, arm: str) -> float | None:
        """The weight with the best mean utility on the probe at the end of the tuning runs; None if one is missing.

        A single weight is taken as it is, once the pilots have set its unit.
        """
        if len(weights := self._weights(arm)) == 1:
            return weights[0] if self.units() else None
        found = self._read(job for job in self.tuning() if job.arm == arm)
        if not found:
            return None
        ends: dict[float, list[float]] = {}
        for run in found:
            ends.setdefault(run["weight"], []).append(float(np.mean(run["watched"][-1]["probe"]["utility"])))
        return max(ends, key=lambda weight: (np.mean(ends[weight]), -weight))

    def judged(self) -> list[Job]:
        """The runs that are judged, in the plan's order; an arm with a weight comes when it has been chosen."""
        units, found = self.units() or {}, []
        chosen = {arm: self.chosen(arm) for arm in self.content["arms"]}
        for part in self.content["judged"]:
            for seed in part["seeds"]:
                for arm in part["arms"]:
                    changes = self.content["arms"][arm]
                    tuned = changes.get("weight_of", arm if "weights" in changes else None)
                    own = "gamma" in self.content["settings"][part["setting"]]
                    weight = None if own or tuned is None else chosen[tuned]
                    if tuned is not None and not own and weight is None:
                        continue
                    gamma = None if weight is None else weight * units[changes["rule"]]
                    made = self._settings(part["setting"], arm, seed, gamma)
                    found.append(Job(part["setting"], arm, weight, seed, "judged", made))
        return found

    def missing(self) -> list[Job]:
        """What can be played now and is not there: pilots first, then judged runs, then the tuning of the others."""
        known = {path.stem for path in self.out.glob("*.json")}
        return [job for job in (*self.pilots(), *self.judged(), *self.tuning()) if job.name not in known]

    def cost(self) -> str:
        """What is missing, and how long that takes as far as the files of other runs say."""
        there = [read_study_run(path) for path in sorted(self.out.glob("*.json"))]
        missing = self.missing()
        later = sum(len(part["seeds"]) * len(part["arms"]) for part in self.content["judged"]) - len(self.judged())
        told = f"{len(there)} runs are there, {len(missing)} can be played now, {later} when their weights are chosen"
        if not there:
            return f"{told}; how long one takes will be known after the first ones"
        seconds = float(np.mean([run["provenance"]["cpu_seconds_a_run"] for run in there]))
        return f"{told}: about {(len(missing) + later) * seconds / 3600:.1f} CPU hours at {seconds:.0f} s a run"

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs that are played as one batch: of one stage and setting, in their order, in as few and as even parts as
        the plan's `group` allows, the larger ones first."""
        found: list[list[Job]] = []
        for _, alike in groupby(jobs, lambda job: (job.stage, job.setting)):
            rest = list(alike)
            for parts in range(-(-len(rest) // self.content["group"]), 0, -1):
                size = -(-len(rest) // parts)
                found.append(rest[:size])
                rest = rest[size:]
        return found
