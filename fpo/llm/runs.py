"""A run's folder: who may use it, its checkpoint, its trace."""

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from fpo import files
from fpo.llm.candidates import TrainingError
from fpo.llm.head import Comparisons
from fpo.llm.models import Policy, RewardModel
from fpo.llm.oracles import Oracle
from fpo.llm.settings import Settings
from fpo.llm.team import Team

# Free space a run asks for, in sizes of what it trains: a checkpoint holds it and AdamW's two moments, is written
# beside the one it replaces, and as much again is kept in hand.
FREE = 9

# Oracle labels: those asked for, for the trace's own use too, and those that the rule and the RM's update need.
LABELS = ("labels_asked", "labels_needed")

Optimizers = Mapping[str, torch.optim.Optimizer]


class FolderError(RuntimeError):
    """A run's folder is in use, belongs to another run or to other code, is damaged or cannot be made."""


@cache
def code(module: str = "fpo.llm.loop") -> str:
    """Identifies what a module executes, as `fpo.files.code_digest`: a checkpoint of other code is not gone on from.

    Asked once in a process, which keeps the code that it has loaded.
    """
    return files.code_digest(module)[:16]


def saved_settings(settings: Settings, oracle: Oracle | None = None) -> dict[str, Any]:
    """What a run's folder remembers of it, `code` included: a run with anything else is another run."""
    saved = settings.model_dump(mode="json", exclude={"save_every", "labels", "label_timeout", "label_tries"})
    if oracle is not None:
        saved["oracle"] = f"{oracle.__module__}:{getattr(oracle, '__qualname__', type(oracle).__qualname__)}"
    return saved | {"code": code()}


def other_settings(before: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which a run that was saved before is another one, its code apart."""
    return [name for name in saved if name != "code" and before.get(name) != saved[name]]


def _check_code(folder: Path, before: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if before.get("code") != saved["code"]:
        raise FolderError(
            f"{folder} holds a run of other code than this version of fpo has, which would not go on to the same "
            "numbers: choose another folder to play the run anew, or go on with the version that it was begun with "
            "(its trace.jsonl can be read by any)"
        )


# Who may use a folder


def _nearest(folder: Path) -> Path:
    """The folder, or what there is of the path to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_folder(folder: str | Path, saved: dict[str, Any]) -> None:
    """See whether a run can be kept in a folder; nothing is made or changed.

    Raises
    ------
    FolderError
        If it holds a run with other settings or of other code, is damaged or cannot be made.
    """
    if not str(folder):
        raise FolderError("the folder has no name: give it one ('.' is the current folder)")
    path = Path(folder)
    try:
        nearest = _nearest(path)
        if not nearest.is_dir():
            raise FolderError(f"{folder} cannot be made a folder ({nearest} is none)")
        if not os.access(nearest, os.W_OK):
            raise FolderError(f"{folder} cannot be written to: choose another folder")
        settings_file = path / "settings.json"
        if settings_file.exists():
            try:
                before = json.loads(settings_file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                before = None
            if not isinstance(before, dict):
                raise FolderError(
                    f"{settings_file} is damaged: remove {folder} to play the run anew, or choose another folder"
                )
            if other := other_settings(before, saved):
                listed = "; ".join(f"{key} = {before.get(key)!r} there, {saved[key]!r} now" for key in other)
                raise FolderError(f"{folder} holds a run with other settings: {listed}. Choose another folder")
            _check_code(path, before, saved)
        _load(path / "references.pt", saved)
        if checkpoint := _load(path / "checkpoint.pt", saved):
            _read_trace(path, checkpoint)
    except OSError as error:
        raise FolderError(f"{folder} cannot be used ({error}): choose another folder") from error


def check_free(folder: str | Path) -> None:
    """See whether another run plays in a folder; no lock is made.

    Raises
    ------
    FolderError
        If one does.
    """
    if Path(folder, "lock").exists():
        _lock(Path(folder)).release()


def check_room(folder: str | Path, trained: Iterable[torch.Tensor]) -> None:
    """See whether the disk has room for checkpoints of these tensors.

    Raises
    ------
    TrainingError
        If it has not.
    """
    size = FREE * sum(value.numel() * value.element_size() for value in trained)
    if shutil.disk_usage(_nearest(Path(folder))).free < size:
        raise TrainingError(f"{folder}: less than {size / 2**20:.0f} MiB free, too little for checkpoints")


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderError(f"{folder} is in use by another run: choose another folder, or wait for it") from None
    return lock


@contextmanager
def claimed(folder: str | Path | None, saved: dict[str, Any], team: Team) -> Iterator["RunFolder"]:
    """A run's folder for this run alone, locked while it plays.

    The file `lock` is made when nothing is left to be refused, and stays: who removed it might take it away from a run
    that has opened and is about to lock it, and a third one could then make and lock another.

    Raises
    ------
    FolderError
        If another run holds it, it holds a run with other settings or of other code, is damaged or cannot be made.
    """
    if folder is None or not team.leads:
        yield RunFolder(None if folder is None else Path(folder), saved, writes=False)
        return
    check_folder(folder, saved)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder} cannot be made a folder ({error})") from error
    try:
        # Another run may have come and gone since.
        check_folder(folder, saved)
        yield RunFolder(path, saved, writes=True)
    finally:
        lock.release()


# What a run leaves


class RunFolder:
    """A run's trace and what is kept in its folder; without a path nothing is.

    Attributes
    ----------
    trace : list of dict
        One entry a step.
    """

    def __init__(self, path: Path | None, saved: dict[str, Any], writes: bool) -> None:
        self.trace: list[dict[str, Any]] = []
        self._path, self._saved = path, saved
        self._written = path if writes else None
        self._bytes, self._digest = 0, hashlib.sha256()
        self._stored = 0  # position of the checkpoint in the folder
        self._last_whole: dict[str, Any] | None = None

    @property
    def writes(self) -> bool:
        """Whether there is a folder and this process is the one that writes to it."""
        return self._written is not None

    @contextmanager
    def _disk(self, position: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._path} cannot be written to after step {position} ({error.strerror or error}): make room and "
                "start again; the run resumes from its last checkpoint"
            ) from error

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one, with the trace up to it; what was written after it goes."""
        if self._path is None:
            return None
        if self._written:
            with self._disk(0):
                files.save_json(self._written / "settings.json", self._saved)
        checkpoint = _load(self._path / "checkpoint.pt", self._saved)
        if checkpoint is None:
            if self._written:
                (self._written / "trace.jsonl").unlink(missing_ok=True)
            return None
        content = _read_trace(self._path, checkpoint)
        self.trace = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        self._bytes, self._digest = len(content), hashlib.sha256(content)
        self._stored = checkpoint["position"]
        if self._written:
            os.truncate(self._written / "trace.jsonl", self._bytes)
        return checkpoint

    def references(self) -> dict[int, Any]:
        """The reference responses that are kept here."""
        kept = _load(self._path / "references.pt", self._saved) if self._path else None
        return kept["references"] if kept else {}

    def save_references(self, references: Mapping[int, Any]) -> None:
        """Keep these reference responses.

        Raises
        ------
        TrainingError
            If the disk is full.
        """
        if self._written:
            with self._disk(self._stored):
                files.save(self._written / "references.pt", {"run": self._saved, "references": dict(references)})

    def extend(self, lines: list[dict[str, Any]]) -> None:
        """Add a window's lines to the trace, whose counts of labels become running sums, and to its file.

        Raises
        ------
        TrainingError
            If the disk is full.
        """
        add_lines(self.trace, lines)
        if self._written:
            with self._disk(len(self.trace)):
                content = append(self._written / "trace.jsonl", lines)
            self._bytes += len(content)
            self._digest.update(content)

    def keep(self, state: dict[str, Any], due: bool) -> None:
        """Keep the state that the last whole window left: in a checkpoint if it is `due`, else for an interrupt.

        Raises
        ------
        TrainingError
            If the disk is full.
        """
        state |= {"run": self._saved, "position": len(self.trace)}
        state |= {"trace_bytes": self._bytes, "trace_sha256": self._digest.hexdigest()}
        # An interrupt may come anywhere in a window, which changes tensors in place: what it finds half done is left
        # alone, and a copy of what the last whole window left is saved.
        self._last_whole = state if due else copy.deepcopy(state)
        if due:
            self._save(state)

    def _save(self, state: dict[str, Any]) -> None:
        if self._written:
            with self._disk(state["position"]):
                files.save(self._written / "checkpoint.pt", state)
            self._stored = state["position"]

    @contextmanager
    def saved_if_interrupted(self) -> Iterator[None]:
        """Save what the last whole window left if Control-C ends the block.

        Raises
        ------
        KeyboardInterrupt
            The same, when all is saved.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self._last_whole and self._last_whole["position"] > self._stored:
                self._save(self._last_whole)
            raise


def add_lines(trace: list[dict[str, Any]], lines: Iterable[dict[str, Any]]) -> None:
    """Add lines to a trace; their counts of labels become running sums."""
    for line in lines:
        for name in LABELS:
            line[name] += trace[-1][name] if trace else 0
        trace.append(line)


def append(path: Path, lines: list[dict[str, Any]]) -> bytes:
    """Add lines of JSON to a file for good; returns their bytes."""
    # In ASCII: a lone surrogate has no UTF-8, and other programs take some characters for the end of a line.
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return content


def _load(path: Path, saved: dict[str, Any]) -> dict[str, Any] | None:
    try:
        state = files.load(path)
    except ValueError as error:
        raise FolderError(str(error)) from error
    if state is not None:
        before = state.get("run")
        if not isinstance(before, dict) or other_settings(before, saved):
            raise FolderError(f"{path} belongs to another run: remove it to start afresh")
        _check_code(path.parent, before, saved)
    return state


def _read_trace(folder: Path, checkpoint: dict[str, Any]) -> bytes:
    """The trace up to a checkpoint.

    Raises
    ------
    FolderError
        If it is not what the checkpoint remembers.
    """
    path = folder / "trace.jsonl"
    content = path.read_bytes()[: checkpoint["trace_bytes"]] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != checkpoint["trace_sha256"]:
        raise FolderError(
            f"{path} is not as the run left it: put it back, or remove {folder / 'checkpoint.pt'} to start afresh"
        )
    return content


# What a checkpoint holds


def snapshot(
    policy: Policy, reward_model: RewardModel, optimizers: Optimizers, comparisons: Comparisons
) -> dict[str, Any]:
    """All that the next window depends on; its tensors are the living ones."""
    numpy_stream = np.random.get_state(legacy=False)
    numpy_stream["state"]["key"] = numpy_stream["state"]["key"].tolist()  # a checkpoint holds no arrays
    return {
        "adapter": {key: value.detach() for key, value in policy.adapter.items()},
        "head": reward_model.head.state_dict(),
        "optimizers": {key: value.state_dict() for key, value in optimizers.items()},
        "comparisons": [values.cpu() for values in comparisons],
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": numpy_stream,
            "python": random.getstate(),
        },
    }


def restore(
    checkpoint: dict[str, Any], policy: Policy, reward_model: RewardModel, optimizers: Optimizers
) -> Comparisons:
    """Go back to a `snapshot`; returns its comparisons."""
    policy.untrained = False
    with torch.no_grad():
        for key, value in policy.adapter.items():
            value.copy_(checkpoint["adapter"][key])
    reward_model.head.load_state_dict(checkpoint["head"])
    for key, optimizer in optimizers.items():
        optimizer.load_state_dict(checkpoint["optimizers"][key])
    streams = checkpoint["random"]
    torch.set_rng_state(streams["torch"])
    if streams["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(streams["cuda"])
    inner = streams["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    np.random.set_state({**streams["numpy"], "state": {**inner, "key": key}})
    random.setstate(streams["python"])
    return Comparisons(*(values.to(policy.device) for values in checkpoint["comparisons"]))
