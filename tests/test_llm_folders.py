"""A run's folder: what is damaged, missing, in use or another run's is refused by name, and nothing is changed."""

import json
import shutil
from pathlib import Path

import pytest
from tools import llm as llm_tools
from tools.llm import play

import fpo
from fpo import files
from fpo.llm import FolderError, ModelError, TrainingError, runs, settings, train, workbench
from fpo.llm.__main__ import main
from fpo.llm.team import Team
from fpo.parameters import ParameterError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """A workbench and the folder of a run of 5 windows that nothing interrupts."""
    return llm_tools.short_run(tiny, tmp_path_factory.mktemp("short") / "run")


# Damaged folders


def edited(content: bytes) -> bytes:
    """A trace in which one step's reward is another."""
    first, rest = content.split(b"\n", 1)
    return json.dumps({**json.loads(first), "reward": 0.5}).encode() + b"\n" + rest


DAMAGES = {
    "settings.json": {
        "empty": lambda content: b"",
        "truncated": lambda content: content[:-20],
        "not UTF-8": lambda content: content.replace(b"packaged", b"p\xffck"),
        "UTF-16": lambda content: content.decode().encode("utf-16"),
        "a list": lambda content: b"[]",
        "deep": lambda content: b"[" * 100_000,
    },
    "trace.jsonl": {
        "empty": lambda content: b"",
        "truncated": lambda content: content[:-20],
        "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
        "not UTF-8": lambda content: b"\xff" + content[1:],
        "edited": edited,
        "a line less": lambda content: content.split(b"\n", 1)[1],
    },
    "checkpoint.pt": {
        "empty": lambda content: b"",
        "truncated": lambda content: content[:-20],
        "edited": lambda content: content.replace(b"position", b"positiom"),
    },
    "references.pt": {
        "empty": lambda content: b"",
        "truncated": lambda content: content[: len(content) // 2],
        "edited": lambda content: content.replace(b"utility", b"utilitz"),
    },
}
CASES = [(name, case) for name, cases in DAMAGES.items() for case in cases]


@pytest.fixture
def damaged(short, tmp_path, monkeypatch):
    """A copy of a run in which one file is changed; nothing must be done with it but to say so once."""
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    monkeypatch.setattr(workbench, "Policy", None)

    def check(name, content):
        (folder / name).write_bytes(content)
        before = contents(folder)
        for begin in (lambda: train(made.settings, folder), lambda: play(made, folder)):
            with pytest.raises(FolderError) as caught:
                begin()
            told = str(caught.value)
            assert name in told and "remove" in told and "\n" not in told
            assert contents(folder) == before

    return check


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_damaged_file_is_refused_with_its_name(short, damaged, name, case):
    before = (short[1] / name).read_bytes()
    after = DAMAGES[name][case](before)
    assert after != before
    damaged(name, after)


@pytest.mark.parametrize("name", ["checkpoint.pt", "references.pt", "trace.jsonl"])
def test_a_flipped_bit_is_refused(short, damaged, name):
    content = (short[1] / name).read_bytes()
    for at in range(0, len(content), len(content) // 20):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        damaged(name, bytes(flipped))


def test_settings_with_other_line_ends_are_the_same(short, tmp_path):
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run")
    path = folder / "settings.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(play(made, folder)) == 10


@pytest.mark.parametrize("name", ["trace.jsonl", "settings.json"])
def test_a_missing_file(short, tmp_path, name):
    """Without its trace a checkpoint is of no use; the settings stand in it too and are written again."""
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / name).unlink()
    if name == "settings.json":
        assert len(play(made, folder)) == 10
        with pytest.raises(FolderError, match="checkpoint.pt belongs to another run: remove it to start afresh"):
            (folder / name).unlink()
            (folder / "references.pt").unlink()
            play(made, folder, gamma=3.0)
    else:
        with pytest.raises(FolderError, match="trace.jsonl is not as the run left it"):
            play(made, folder)


# Other code


def as_before_code_stood_in_it(folder):
    path = folder / "settings.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert len(saved.pop("code")) == 16
    path.write_text(json.dumps(saved), encoding="utf-8")
    for name in ("checkpoint.pt", "references.pt"):
        files.save(folder / name, files.load(folder / name) | {"run": saved})


@pytest.mark.parametrize("settings_are_there", [True, False])
@pytest.mark.parametrize("case", ["of other code", "of a version that kept no code"])
def test_a_run_of_other_code_is_not_gone_on_from(short, tmp_path, monkeypatch, case, settings_are_there):
    """One message says what to do; the folder stays as it was, and with its own code goes on."""
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    if case == "of a version that kept no code":
        as_before_code_stood_in_it(folder)
    if not settings_are_there:
        (folder / "settings.json").unlink()
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(workbench, "Policy", None)  # no model is loaded
        if case == "of other code":
            patch.setattr(runs, "code", lambda: "0123456789abcdef")
        for begin in (lambda: train(made.settings, folder), lambda: play(made, folder)):
            with pytest.raises(FolderError) as caught:
                begin()
            told = str(caught.value)
            assert f"{folder} holds a run of other code" in told and "choose another folder" in told
            assert "settings" not in told and "remove" not in told and "\n" not in told
            assert contents(folder) == before
    if case == "of other code":
        assert len(play(made, folder)) == 10


def test_the_command_tells_of_other_code_in_one_line(short, tmp_path, monkeypatch, capsys):
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    monkeypatch.setattr(runs, "code", lambda: "0123456789abcdef")
    given = [f"{name}={json.dumps(value)}" for name, value in made.settings.model_dump(mode="json").items()]
    assert main([str(folder), *(part for each in given for part in ("--set", each))]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"{folder} holds a run of other code") and told.count("\n") == 1


EXECUTED = {
    **dict.fromkeys(("llm/loop.py", "llm/decoding.py", "llm/candidates.py", "llm/models.py", "llm/reading.py"), True),
    **dict.fromkeys(("llm/oracles.py", "llm/head.py", "rules.py", "steering.py"), True),
    # What plays no run, and what only says.
    **dict.fromkeys(
        ("llm/study.py", "llm/plan.py", "llm/__main__.py", "llm/together.py", "stats.py", "claims.py"), False
    ),
}


@pytest.mark.parametrize("file", EXECUTED)
def test_a_runs_code_is_all_that_it_executes_and_nothing_else(monkeypatch, file):
    changed, real = Path(fpo.__file__).parent / file, Path.read_bytes

    def code(more):
        monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + more * (path == changed))
        return runs.code.__wrapped__()

    assert changed.exists() and code(b"") == runs.code()
    assert code(b"\n# Said.\n") == runs.code()
    assert (code(b"\nMORE = 1\n") != runs.code()) == EXECUTED[file]


# A refusal leaves nothing


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "folder that is there"])
@pytest.mark.parametrize("case", ["parameter", "prompts", "model", "room"])
def test_a_refusal_leaves_nothing_behind(tiny, tmp_path, monkeypatch, there, case):
    folder = tmp_path / "some" / "run"
    if there:
        folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    changes = {
        "parameter": {"min_new_tokens": 12},
        "prompts": {"prompts": str(tmp_path / "none.jsonl")},
        "model": {"policy": str(tmp_path / "none")},
        "room": {},
    }[case]
    if case == "room":
        monkeypatch.setattr(runs, "FREE", 10**15)
    with pytest.raises((ParameterError, ModelError, TrainingError)):
        train(settings(**{**tiny, "steps": 2, **changes}), folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_settings_leave_no_lock(short, tmp_path):
    made, whole = short
    folder = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))
    for begin in (lambda: play(made, folder, gamma=3.0), lambda: train(made.settings.replace(seed=1), folder)):
        with pytest.raises(FolderError, match="holds a run with other settings"):
            begin()
    assert contents(folder) == {name: content for name, content in contents(whole).items() if name != "lock"}


def test_no_name_is_no_folder(short, tmp_path, monkeypatch):
    made, _ = short
    monkeypatch.chdir(tmp_path)
    for begin in (lambda: play(made, ""), lambda: train(made.settings, "")):
        with pytest.raises(FolderError, match="the folder has no name"):
            begin()
    assert not list(tmp_path.iterdir())


def test_a_folder_taken_while_models_were_loaded(short, tmp_path):
    """Who comes second is turned away at the lock too, and the lock of the first stays."""
    made, _ = short
    folder = tmp_path / "run"
    with runs.claimed(folder, runs.saved_settings(made.settings), made.team):
        with pytest.raises(FolderError, match="in use by another run"):
            play(made, folder)
        assert [path.name for path in folder.iterdir()] == ["lock"]
    assert len(play(made, folder)) == 10


def test_a_folder_is_claimed_once(tiny, tmp_path):
    with runs.claimed(tmp_path / "run", runs.saved_settings(settings(**tiny)), Team()):
        with pytest.raises(FolderError, match="in use"):
            train(settings(**tiny), tmp_path / "run")
