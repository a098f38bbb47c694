"""A run that is really killed goes on to the same trace and the same weights, to the last bit."""

import random
import shutil
import time

import llm_tools
import pytest
import torch
import yaml

from fpo.llm import FolderError, TrainingError, loop, settings, train

STEPS = 40


def same(a, b):
    """Bit by bit, through every container."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def learned(folder):
    """What a checkpoint holds of the run itself; the number of bytes of the trace depends on the clock's digits."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {key: value for key, value in state.items() if key != "trace_bytes"}


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    file = folder / "settings.yaml"
    # Dropout, so that a random state that was not restored would show.
    values = {**tiny, "steps": STEPS, "window": 2, "rule": "exact", "lora_dropout": 0.1, "policy_lr": 1e-3}
    file.write_text(yaml.safe_dump(values))
    code, told = llm_tools.finish(llm_tools.start(["-m", "fpo.llm", str(folder / "run"), "--file", str(file)]))
    assert code == 0, told
    return folder / "run", file


@pytest.mark.parametrize("save_every", [1, 3])
def test_killed_and_resumed(uninterrupted, tmp_path, save_every):
    """Killed at random moments until at least two kills have met a run at work, then left to finish."""
    whole, file = uninterrupted
    folder = tmp_path / "run"
    command = ["-m", "fpo.llm", str(folder), "--file", str(file), "--set", f"save_every={save_every}"]
    generator = random.SystemRandom()
    met, reached = 0, [0]
    while met < 2:
        process = llm_tools.start(command)
        llm_tools.until_grown(process, folder / "trace.jsonl", llm_tools.size(folder / "trace.jsonl"))
        time.sleep(generator.uniform(0, 0.6))
        process.kill()
        process.communicate()
        lines = (folder / "trace.jsonl").read_text(encoding="utf-8").count("\n")
        met += 0 < lines < STEPS
        reached.append(lines)
        assert lines < STEPS or met, f"no kill met the run at work: {reached}"
        if lines >= STEPS:
            break
    assert met >= 1, reached
    code, told = llm_tools.finish(llm_tools.start(command))
    assert code == 0, told
    assert llm_tools.trace(folder) == llm_tools.trace(whole), reached
    assert same(learned(folder), learned(whole)), reached


def test_killed_while_references_are_made(uninterrupted, tmp_path):
    whole, file = uninterrupted
    folder = tmp_path / "run"
    command = ["-m", "fpo.llm", str(folder), "--file", str(file)]
    process = llm_tools.start(command)
    llm_tools.until_grown(process, folder / "references.pt")
    process.kill()
    process.communicate()
    code, told = llm_tools.finish(llm_tools.start(command))
    assert code == 0, told
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_half_a_line_is_cut_off(uninterrupted, tmp_path):
    """What a kill left behind the last checkpoint, whole lines or half ones, is played again."""
    whole, file = uninterrupted
    folder = shutil.copytree(whole, tmp_path / "run")
    with open(folder / "trace.jsonl", "a", encoding="utf-8") as trace:
        trace.write('{"step": 40, "prom')
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
    monkeypatch.setattr(loop.Pipeline, "_step", None)
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
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = settings(**{**yaml.safe_load(file.read_text()), "gamma": 3.0, "seed": 1})
    with pytest.raises(FolderError, match="gamma = None there, 3.0 now; seed = 42 there, 1 now"):
        train(other, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_runs_never_write_to_one_folder(uninterrupted, tmp_path):
    """While one process plays, a second one is turned away at once; the first is not disturbed."""
    whole, file = uninterrupted
    folder = tmp_path / "run"
    command = ["-m", "fpo.llm", str(folder), "--file", str(file)]
    first = llm_tools.start(command)
    llm_tools.until_grown(first, folder / "references.pt")
    with pytest.raises(FolderError, match="in use by another run"):
        train(settings(**yaml.safe_load(file.read_text())), folder)
    code, told = llm_tools.finish(first)
    assert code == 0, told
    assert llm_tools.trace(folder) == llm_tools.trace(whole)


def test_a_full_disk_loses_nothing(uninterrupted, tmp_path, monkeypatch):
    whole, file = uninterrupted
    folder = tmp_path / "run"
    chosen = settings(**yaml.safe_load(file.read_text()))
    append, left = loop._append, [5]

    def until_full(path, lines):
        left[0] -= 1
        if left[0] < 0:
            with open(path, "a", encoding="utf-8") as trace:
                trace.write("{")  # part of the line still found room
            raise OSError(28, "No space left on device")
        return append(path, lines)

    monkeypatch.setattr(loop, "_append", until_full)
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
