"""A study: many runs by a plan, each kept in one small file; what is there is not played again.

    python -m fpo.llm.study notebooks/parameters/llm_study.yaml notebooks/runs/llm_study

plays what is missing, several runs as one batch in each of the workers, and can be stopped at any time.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fpo import files, results
from fpo.llm.candidates import TrainingError, beginning
from fpo.llm.panels import Watcher
from fpo.llm.plan import Job, Plan, read_study_run
from fpo.llm.runs import code
from fpo.llm.settings import read_yaml, settings
from fpo.llm.together import Group, train_together
from fpo.llm.weights import ModelError
from fpo.llm.workbench import LOADED, Workbench
from fpo.parameters import ParameterError, one_line
from fpo.rules import RULES

TRACED = (
    "reward",
    "utility",
    "winner_reward",
    "winner_utility",
    "p_phi",
    "p_star",
    "length",
    "distinct_2",
    "repetition",
)


def content_of(job: Job, group: Group, run: int, provenance: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's file: what it was, what was watched, and its trace by windows."""
    trace, window = group.traces[run], job.settings.window
    windows = [trace[start : start + window] for start in range(0, len(trace), window)]

    def mean(lines: Iterable[dict[str, Any]], name: str) -> float | None:
        values = [each[name] for each in lines if each[name] is not None]
        return round(float(np.mean(values)), 4) if values else None

    content = {
        "setting": job.setting,
        "arm": job.arm,
        "weight": job.weight,
        "seed": job.seed,
        "stage": job.stage,
        "settings": {key: value for key, value in dict(job.settings).items() if value != dict(settings())[key]},
        "provenance": provenance,
        "labels_asked": trace[-1]["labels_asked"],
        "labels_needed": trace[-1]["labels_needed"],
        "winners": [each["winner"] for each in trace],
        "trace": {name: [mean(lines, name) for lines in windows] for name in TRACED},
        "watched": results.plain(group.watched[run]),
    }
    if group.observed:
        names = trace[0]["spreads"]
        # A prompt to which nothing was written has no spread.
        content["spreads"] = {name: float(np.nanmean([each["spreads"][name] for each in trace])) for name in names}
    return content


@cache
def _loaded(models: tuple) -> tuple[Workbench, Watcher]:
    bench = Workbench(settings(**dict(models)))
    return bench, Watcher(bench)


def play(plan: Plan, jobs: Sequence[Job], work: Path, told: Callable[[int], None] = lambda steps: None) -> None:
    """Play a group of runs and write their files; a process loads its models once for all groups.

    What is kept on the way in `work` has the code in its name: where other code has left a checkpoint, a line says so,
    that file stays, and the group begins afresh.
    """
    bench, watcher = _loaded(tuple((name, getattr(jobs[0].settings, name)) for name in LOADED))
    group_name, executed = f"{jobs[0].name}+{len(jobs) - 1}", code(Watcher.__module__)
    checkpoint = work / f"{group_name}-{executed}.pt"
    others = [
        path for path in work.glob("*.pt") if path.stem.rpartition("-")[0] == group_name or path.stem == group_name
    ]
    if others and not checkpoint.exists():
        print(f"{others[0]} was written by other code: its runs begin afresh", flush=True)
    shared = {beginning(job.settings): None for job in jobs}
    kept = {
        key: work / f"references-{hashlib.sha256(repr((key, executed)).encode()).hexdigest()[:16]}.pt" for key in shared
    }
    for key, path in kept.items():
        for batch, responses in (files.load(path) or {"references": []})["references"]:
            bench.references[key, tuple(batch)] = responses
    tuned = jobs[0].stage == "tuning"
    observed = [name for name in RULES if RULES[name].penalty is not RULES["standard"].penalty]
    group = train_together(
        [job.settings for job in jobs],
        bench,
        watcher.probe if tuned else watcher.everything,
        [jobs[0].settings.steps] if tuned else plan.content["watch_at"],
        checkpoint,
        observed if jobs[0].stage == "pilot" else (),
        told,
    )
    command = f"python -m fpo.llm.study {plan.file} {plan.out}"
    made = results.provenance(command, group.spent["wall"], "fpo", "torch", "transformers", "peft")
    made |= {"runs_beside": len(jobs) - 1, "cpu_seconds_a_run": round(group.spent["cpu"] / len(jobs), 1)}
    for key, path in kept.items():
        own = [[list(batch), responses] for (other, batch), responses in bench.references.items() if other == key]
        files.save(path, {"references": own})
    for run, job in enumerate(jobs):
        files.save_json(plan.out / f"{job.name}.json", content_of(job, group, run, made), indent=None)
    checkpoint.unlink(missing_ok=True)


def play_again(plan: Plan, name: str, folder: Path) -> str:
    """Play a stored run once more, alone, and write its adapter in PEFT's own format; tells how far it came the same.

    Raises
    ------
    ParameterError
        If there is no such run.
    """
    path = plan.out / f"{name}.json"
    if not path.exists():
        raise ParameterError(f"--again: {plan.out} has no run {name!r}")
    stored = read_study_run(path)
    own = settings(**stored["settings"])
    bench = Workbench(own)
    with tqdm(total=own.steps, desc="prompts") as bar:
        group = train_together([own], bench, told=bar.update)
    with torch.no_grad():
        for key, value in bench.policy.adapter.items():
            value.copy_(group.adapters[key][0])
    bench.policy.save_pretrained(folder)
    same = [line["winner"] == old for line, old in zip(group.traces[0], stored["winners"], strict=True)]
    alike = "all" if all(same) else f"the first {same.index(False)} of"
    return f"{folder}: the adapter of {name}; {alike} {len(same)} winners are those of the stored run"


def _work(plan: Plan, jobs: list[Job], work: Path, steps: Any) -> None:
    torch.set_num_threads(1)
    play(plan, jobs, work, lambda taken: steps.put(taken * len(jobs)))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fpo.llm.study", description=__doc__.split("\n")[0])
    parser.add_argument("plan", type=Path, help="a YAML file")
    parser.add_argument("out", type=Path, help="the folder of the runs' files")
    parser.add_argument("--workers", type=int, choices=range(1, 65), default=2, help="processes of one thread")
    parser.add_argument("--work", type=Path, default=Path("_build/llm_study"), help="the folder of checkpoints")
    parser.add_argument("--only", nargs="+", default=[""], help="runs whose names begin with one of these")
    parser.add_argument(
        "--again", nargs=2, metavar=("NAME", "FOLDER"), help="play a run of OUT again and write its adapter to FOLDER"
    )
    given = parser.parse_args(arguments)
    try:
        content = read_yaml(given.plan.read_text(encoding="utf-8"), str(given.plan))
        plan = Plan(content, given.out, given.plan)
        if given.again:
            print(play_again(plan, given.again[0], Path(given.again[1])))
            return 0
        given.out.mkdir(parents=True, exist_ok=True)
        given.work.mkdir(parents=True, exist_ok=True)
        print(plan.cost(), flush=True)
        _play_all(plan, given.workers, given.work, given.only)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    except (ValueError, ModelError, TrainingError, OSError) as error:
        print(error if isinstance(error, ParameterError) else one_line(error, 2000), file=sys.stderr)
        return 1
    return 0


def _play_all(plan: Plan, workers: int, work: Path, only: Sequence[str]) -> None:
    if not any(job.name.startswith(tuple(only)) for job in plan.missing()):
        return
    context = get_context("spawn")  # a forked child of a process that has used threads may hang
    running: dict[Future, list[Job]] = {}
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(workers, context) as pool,
        tqdm(desc="prompts", smoothing=0) as bar,
    ):
        steps, changed = manager.Queue(), True
        while True:
            if changed:  # what is missing depends on files, which come when a group has ended
                missing = [job for job in plan.missing() if job.name.startswith(tuple(only))]
                busy = {job.name for jobs in running.values() for job in jobs}
                waiting = [job for job in missing if job.name not in busy]
                for jobs in plan.groups(waiting)[: workers - len(running)]:
                    running[pool.submit(_work, plan, jobs, work, steps)] = jobs
                bar.total = max(bar.n, bar.total or 0, sum(job.settings.steps for job in missing))
            if not running:
                return
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            changed = bool(done)
            while not steps.empty():
                bar.update(steps.get())
            for future in done:
                names = ", ".join(job.name for job in running.pop(future))
                if error := future.exception():  # said at once: other groups may go on for hours before it is raised
                    bar.write(f"{names}: {one_line(error, 2000)}", file=sys.stderr)
                    raise error


if __name__ == "__main__":
    sys.exit(main())
