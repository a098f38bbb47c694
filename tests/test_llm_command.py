"""The command line and the chapter's list of overrides: every fault in one message."""

import io

import pytest
import yaml
from tools.parameter_classes import validated

from fpo.llm import FolderError, ModelError
from fpo.llm.__main__ import main
from fpo.parameters import ParameterError


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line with a run that only tells what it was asked for; returns status, settings and stderr."""

    def run(*words):
        asked = []

        def play(chosen, folder):
            asked.append(chosen)
            return [{"labels_asked": 2}]

        monkeypatch.setattr("fpo.llm.train", play)
        status = main(list(words))
        return status, (asked or [None])[0], capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, ["--set", "steps"], "--set 'steps': must be NAME=VALUE"),
        (None, ["--set", "=3"], "--set '=3': must be NAME=VALUE"),
        (None, ["--set", "steps=[1"], "--set 'steps=[1': not YAML (ParserError: while parsing a flow sequence"),
        (None, ["--set", "steps=!!bool x"], "--set 'steps=!!bool x': not YAML (KeyError: 'x')"),
        (None, ["--set", "steps=2020-99-99"], "--set 'steps=2020-99-99': not YAML (ValueError: month must be"),
        (None, ["--set", "steps=" + "[" * 500], "not YAML (RecursionError"),
        (None, ["--set", "steps=" + "9" * 5000], "not YAML (ValueError: Exceeds the limit"),
        (None, ["--set", "steps={a: 1, a: 2}"], "not YAML (ConstructorError: 'a' is given twice)"),
        (None, ["--set", "steps=1", "--set", "steps=2"], "--set 'steps=2': 'steps' is given twice"),
        (None, ["--profile", "llama-3.2-1b", "--set", "profile=smollm2-135m"], "'profile' is given twice"),
        (None, ["--profile", "gpt"], "profile = 'gpt': must be one of"),
        (None, ["--set", "profile=[x]"], "profile = ['x']: must be one of"),
        (None, ["--set", "self=3"], "self = 3: no such parameter"),
        (None, ["--set", "a\nb=3"], r"'a\nb' = 3: no such parameter"),
        (None, ["--set", "system=2020-01-01"], "system = datetime.date(2020, 1, 1): must be a text of at most 10,000"),
        (None, ["--file", "{}"], "cannot be read as UTF-8 text ([Errno 2] No such file"),
        (b"\xff", ["--file", "{}"], "cannot be read as UTF-8 text ('utf-8' codec can't decode"),
        (b"", ["--file", "{}"], "holds None, must be a mapping, name: value"),
        (b"- 1\n- 2", ["--file", "{}"], "holds [1, 2], must be a mapping, name: value"),
        (b"1: 2", ["--file", "{}"], "holds {1: 2}, must be a mapping, name: value"),
        (b"steps: [1", ["--file", "{}"], "not YAML (ParserError: while parsing a flow sequence in"),
        (b"steps: 1\nrule: kl\nsteps: 2", ["--file", "{}"], "not YAML (ConstructorError: 'steps' is given twice)"),
        (b"steps: 1\0", ["--file", "{}"], "not YAML (ReaderError: unacceptable character"),
    ],
    ids=range(23),
)
def test_the_command_refuses_in_one_message(command, tmp_path, content, words, message):
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    status, asked, told = command(str(tmp_path / "run"), *(str(file) if word == "{}" else word for word in words))
    assert (status, asked) == (1, None)
    lines = told.splitlines()
    assert message in lines[-1] and len(lines) <= 2 and max(map(len, lines)) < 1500
    assert not (tmp_path / "run").exists()


def test_the_command_line_goes_before_the_file(command, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"\xef\xbb\xbfprofile: llama-3.2-1b\r\nsteps: 8\r\nrule: kl\r\n")
    _, asked, _ = command("run", "--file", str(file), "--set", "steps=4")
    assert (asked.profile, asked.steps, asked.rule) == ("llama-3.2-1b", 4, "kl")
    _, asked, _ = command("run", "--file", str(file), "--profile", "smollm2-135m")
    assert (asked.profile, asked.steps, asked.dtype) == ("smollm2-135m", 8, "float32")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from the last checkpoint\n"),
        (ValueError("run/settings.json is damaged"), 1, "run/settings.json is damaged\n"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device\n"),
        (FolderError("a\nb is in use"), 1, "a b is in use\n"),
        (ModelError("x" * 10**5), 1, "x" * 1997 + "...\n"),
        (ValueError(), 1, "ValueError\n"),
    ],
    ids=["interrupt", "value", "disk", "lines", "long", "nothing"],
)
def test_the_command_ends_in_one_line(monkeypatch, capsys, raised, status, message):
    def play(chosen, folder):
        raise raised

    monkeypatch.setattr("fpo.llm.train", play)
    assert main(["run"]) == status
    assert capsys.readouterr().err == message


def test_a_folder_that_the_terminal_cannot_show(monkeypatch):
    monkeypatch.setattr("fpo.llm.train", lambda chosen, folder: [{"labels_asked": 2}])
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["caf\xe9\udcff"]) == 0
    shown.flush()
    assert shown.buffer.getvalue().rstrip() == rb"1 steps, 2 oracle labels: caf\xe9\udcff/trace.jsonl"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["oracle:answer"], "overrides: 'oracle:answer': must be \"name: value\""),
        (["a: 1\nb: 2"], r"overrides: 'a: 1\nb: 2': must be"),
        (["1: 2"], "overrides: '1: 2': must be"),
        ([""], "overrides: '': must be"),
        (["[1"], "overrides: '[1': not YAML (ParserError: "),
        (["a: !!timestamp x"], "overrides: 'a: !!timestamp x': not YAML (AttributeError: "),
        (["steps: 3"], "overrides: 'steps: 3': the notebook sets steps itself"),
        (["play: []"], "overrides: 'play: []': the notebook sets play itself"),
        (["rule: exact"], "overrides: 'rule: exact': the notebook sets rule itself"),
        (["oracle: answer", "oracle: likelihood"], "overrides: 'oracle: likelihood': 'oracle' is given twice"),
        (["orakel: answer"], "orakel = 'answer': no such parameter"),
        (["lora_rank: 0"], "lora_rank = 0: must be a whole number from 1"),
        ("oracle: answer", "overrides = 'oracle: answer': must be a list of texts, each"),
    ],
    ids=range(13),
)
def test_the_chapters_overrides_in_one_message(entries, message):
    with pytest.raises(ParameterError) as caught:
        validated("llm_pipeline", overrides=entries)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_the_chapters_overrides_count():
    made = validated("llm_pipeline", overrides=["oracle: answer", "lora_rank: 4"], steps=6)["settings"]
    assert (made.oracle, made.lora_rank, made.steps) == ("answer", 4, 6)


def test_the_command_says_one_line(tiny, tmp_path, capsys):
    assert main([str(tmp_path / "run"), "--set", "rule=best"]) == 1
    told = capsys.readouterr().err
    assert "rule = 'best': must be one of" in told and "Traceback" not in told
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny))
    assert main([str(tmp_path / "run"), "--file", str(file), "--set", "steps=2"]) == 0
    assert "2 steps, 8 oracle labels" in capsys.readouterr().out
    assert main([str(tmp_path / "run"), "--file", str(file), "--set", "steps=4"]) == 1
    assert "steps = 2 there, 4 now" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "run")]) == 1
    assert "cannot be made a folder" in capsys.readouterr().err
