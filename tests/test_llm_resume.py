"""A run that is really killed goes on to the same trace and the same weights, to the last bit."""

import errno
import os
import shutil

import pytest
import torch
import yaml
from tools import llm as llm_tools
from tools.interrupts import interrupting
from tools.llm import learned, play, same

from fpo import files
from fpo.llm import FolderError, TrainingError, Workbench, loop, runs, settings, train, workbench

STEPS = 24


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork processes")
    with llm_tools.Nursery(tmp_path_factory.mktemp("nursery") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    file = folder / "settings.yaml"
    # Dropout, so that a random state that was not restored would show.
    values = {**tiny, "steps": STEPS, "window": 2, "rule": "exact", "lora_dropout": 0.1, "policy_lr": 1e-3, "batch": 8}
    file.write_text(yaml.safe_dump(values))
    code, told = llm_tools.finish(llm_tools.start(["-m", "fpo.llm", str(folder / "run"), "--file", str(file)]))
    assert code == 0, told
    return folder / "run", file


# Where a run is killed: what it has just come to, which call of it, and the whole lines that are there then. References
# are synced in three batches, then each window's lines, and a checkpoint after them.
KILLS = {
    1: [
        ("fpo.llm.candidates:Writer._respond", 2, 0),
        ("os:fsync", 1, 0),  # in a write of references
        ("fpo.llm.loop:_step", 3, 4),  # between two windows
        ("os:fsync", 4, 8),  # in a checkpoint, which leaves the one before
        ("os:fsync", 3, 9),  # in a line of the trace
        ("os:replace", 3, 12),  # a checkpoint that is whole and not yet in its place
        ("torch.optim:AdamW.step", 4, 12),  # the policy is updated and the head is not
        ("fpo.llm.runs:snapshot", 2, 16),
    ],
    3: [
        ("fpo.llm.loop:_update", 2, 2),  # before the first checkpoint
        ("fpo.llm.loop:_update", 5, 8),
        ("os:fsync", 4, 12),
        ("torch.optim:AdamW.step", 8, 12),
    ],
}


@pytest.mark.parametrize("save_every", KILLS)
def test_killed_and_resumed(nursery, uninterrupted, tmp_path, save_every):
    whole, file = uninterrupted
    folder = tmp_path / "run"
    command = [str(folder), "--file", str(file), "--set", f"save_every={save_every}"]
    for called, call, lines in KILLS[save_every]:
        nursery.kill(nursery.stopped(called, call, *command))
        trace = folder / "trace.jsonl"
        assert (trace.read_bytes().count(b"\n") if trace.exists() else 0) == lines, (called, call)
    nursery.play(*command)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)
    assert same(learned(folder), learned(whole))


def test_a_used_workbench_plays_as_a_process_of_its_own(uninterrupted, tmp_path):
    whole, file = uninterrupted
    bench = Workbench(settings(**{**yaml.safe_load(file.read_text()), "seed": 1}))
    for changes in ({"rule": "kl", "steps": 4}, {"rule": "standard", "seed": 42, "steps": 4}):
        play(bench, **changes)
    play(bench, tmp_path / "run", seed=42)
    assert llm_tools.trace(tmp_path / "run") == llm_tools.trace(whole)
    assert same(learned(tmp_path / "run"), learned(whole))


def test_half_a_line_is_cut_off(uninterrupted, tmp_path):
    """What a kill left behind the last checkpoint, whole lines or half ones, is played again."""
    whole, file = uninterrupted
    folder = shutil.copytree(whole, tmp_path / "run")
    with open(folder / "trace.jsonl", "a", encoding="utf-8") as trace:
        trace.write('{"step": 24, "prom')
    train(settings(**yaml.safe_load(file.read_text())), folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_lines_before_the_first_checkpoint_are_written_again(uninterrupted, tmp_path):
    whole, file = uninterrupted
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "checkpoint.pt").unlink()
    train(settings(**yaml.safe_load(file.read_text())), folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_a_finished_run_is_read_and_not_played(uninterrupted, tmp_path, monkeypatch):
    whole, file = uninterrupted
    monkeypatch.setattr(loop, "_step", None)
    assert len(train(settings(**yaml.safe_load(file.read_text())), whole)) == STEPS


def test_checkpoints_are_megabytes(uninterrupted):
    """The adapter and its optimizer, not the base model."""
    whole, _ = uninterrupted
    state = learned(whole)
    held = sum(value.numel() * value.element_size() for value in state["adapter"].values())
    size = (whole / "checkpoint.pt").stat().st_size
    assert size < 3 * held + 2**20
    assert not list(whole.rglob("*.safetensors"))


def test_other_settings_are_refused(uninterrupted, tmp_path):
    whole, file = uninterrupted
    folder = shutil.copytree(whole, tmp_path / "run")
    before = contents(folder)
    other = settings(**{**yaml.safe_load(file.read_text()), "gamma": 3.0, "seed": 1})
    with pytest.raises(FolderError, match="gamma = None there, 3.0 now; seed = 42 there, 1 now"):
        train(other, folder)
    assert contents(folder) == before


def test_two_runs_never_write_to_one_folder(nursery, uninterrupted, tmp_path, monkeypatch):
    """While one process plays, a second one is turned away at once; the first is not disturbed."""
    whole, file = uninterrupted
    folder = tmp_path / "run"
    nursery.stopped("fpo.llm.loop:_step", 2, str(folder), "--file", str(file))
    before = contents(folder)
    monkeypatch.setattr(workbench, "Policy", None)  # no model is loaded
    with pytest.raises(FolderError, match="in use by another run"):
        train(settings(**yaml.safe_load(file.read_text())), folder)
    assert contents(folder) == before
    nursery.release()
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_a_full_disk_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    whole, file = uninterrupted
    folder = tmp_path / "run"
    chosen = settings(**yaml.safe_load(file.read_text()))
    append, left = runs.append, [5]

    def until_full(path, lines):
        left[0] -= 1
        if left[0] < 0:
            with open(path, "a", encoding="utf-8") as trace:
                trace.write("{")  # part of the line still found room
            raise OSError(28, "No space left on device")
        return append(path, lines)

    monkeypatch.setattr(runs, "append", until_full)
    with pytest.raises(TrainingError, match="after step 12 .No space left on device.: make room"):
        train(chosen, folder)
    monkeypatch.undo()
    train(chosen, folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_a_loss_that_is_not_finite_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    whole, file = uninterrupted
    folder = tmp_path / "run"
    chosen = settings(**yaml.safe_load(file.read_text()))
    backward, calls = loop.decoding.backward_nll, [0]

    def poisoned(model, *args, **kwargs):
        losses = backward(model, *args, **kwargs)
        calls[0] += 1
        if calls[0] == 4:
            next(value for value in model.parameters() if value.requires_grad).grad.fill_(torch.nan)
        return losses

    monkeypatch.setattr(loop.decoding, "backward_nll", poisoned)
    with pytest.raises(TrainingError, match="step 6: the gradient of the policy is not finite"):
        train(chosen, folder)
    assert len(llm_tools.trace(folder)) == 6
    monkeypatch.undo()
    train(chosen, folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_torchs_own_failure_to_write_is_a_full_disk(uninterrupted, tmp_path, monkeypatch):
    """Not only the trace finds no room: a checkpoint does not either, and torch calls that something else."""
    _, file = uninterrupted
    sync, calls = os.fsync, [0]

    def full(handle):
        calls[0] += 1
        if calls[0] == 7:  # three batches of references, two windows
            os.ftruncate(handle, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="after step 4 .*make room and start again; the run resumes from its last"):
        train(settings(**yaml.safe_load(file.read_text())), tmp_path / "run")
    assert files.load(tmp_path / "run" / "checkpoint.pt")["position"] == 2
    assert not list((tmp_path / "run").glob(".*"))


# Ctrl-C


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """A workbench and the folder of a run of 5 windows that nothing interrupts."""
    return llm_tools.short_run(tiny, tmp_path_factory.mktemp("short") / "run")


# Where an interrupt comes in the fourth window, after a checkpoint of the second. What the first one begins with is
# remembered and not written again.
MOMENTS = {
    "before the window": (loop, "_step", 4, False),
    "when the policy has written": (loop.decoding, "decode", 3, True),
    "before the update": (loop, "_update", 4, False),
    "between policy and head": (torch.optim.AdamW, "step", 8, False),
    "after the update": (loop, "_update", 4, True),
    "before the lines are written": (runs, "append", 4, False),
    "when the lines are written": (runs, "append", 4, True),
    "while the state is taken": (runs, "snapshot", 4, False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_control_c_saves_the_last_whole_window(short, tmp_path, monkeypatch, moment):
    made, whole = short
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupting(patch, *MOMENTS[moment])
        with pytest.raises(KeyboardInterrupt):
            play(made, folder)
    assert files.load(folder / "checkpoint.pt")["position"] == 6
    play(made, folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)
    assert same(learned(folder), learned(whole))


def test_control_c_in_a_checkpoint_saves_it_again(short, tmp_path, monkeypatch):
    made, whole = short
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupting(patch, os, "replace", 4, False)  # after the settings, the references and a checkpoint
        with pytest.raises(KeyboardInterrupt):
            play(made, folder)
    assert files.load(folder / "checkpoint.pt")["position"] == 8
    play(made, folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_control_c_before_the_first_window_leaves_a_run_that_starts(short, tmp_path, monkeypatch):
    made, whole = short
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupting(patch, loop, "_step", 1, False)
        with pytest.raises(KeyboardInterrupt):
            play(made, folder)
    assert not (folder / "checkpoint.pt").exists()
    play(made, folder)
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


STRANGE = "a\u2028b\x85c\x1cd\ud800e \u00e4\U0001f600"


def test_any_text_can_be_resumed(short, tmp_path, monkeypatch):
    """Characters that some take for the end of a line, and halves of characters that have no UTF-8."""
    made, _ = short
    folder, line = tmp_path / "run", loop.line
    monkeypatch.setattr(loop, "line", lambda *args: line(*args) | {"text": STRANGE})
    with monkeypatch.context() as patch:
        interrupting(patch, loop, "_step", 3, False)
        with pytest.raises(KeyboardInterrupt):
            play(made, folder)
    trace = play(made, folder)
    assert len(trace) == 10 and {each["text"] for each in trace} == {STRANGE}
    assert [each["text"] for each in llm_tools.trace(folder)] == [STRANGE] * 10
    assert len((folder / "trace.jsonl").read_text(encoding="utf-8").splitlines()) == 10


def test_half_a_character_in_a_response(short, monkeypatch):
    made, _ = short
    monkeypatch.setattr(type(made.policy.tokenizer), "decode", lambda *args, **kwargs: " a\ud800 ")
    assert made.policy.text([5]) == "a?"
