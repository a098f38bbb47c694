"""Prompts: those of the package, files with odd lines, prompts without answers or too long."""

import json
import sys
from types import SimpleNamespace

import pytest
from tools import llm as llm_tools

from fpo.llm import Workbench, load_prompts, settings, train
from fpo.llm.prompts import order
from fpo.parameters import ParameterError


def test_packaged_prompts():
    train_set, held_out = load_prompts("packaged", 10**6), load_prompts("packaged:heldout", 10**6)
    assert len(train_set) >= 160 and len(held_out) >= 80
    texts = [prompt.text.lower() for prompt in (*train_set, *held_out)]
    assert len(set(texts)) == len(texts)
    for prompt in (*train_set, *held_out):
        assert len(prompt.correct) >= 2 and len(prompt.incorrect) >= 2 and prompt.keywords, prompt.id
        assert not set(prompt.correct) & set(prompt.incorrect)
        for answer in (*prompt.correct, *prompt.incorrect):
            assert 3 <= len(answer.split()) <= 22, (prompt.id, answer)


def test_only_a_newline_ends_a_line_of_prompts(tmp_path):
    """JSON may hold U+2028, U+2029 and U+0085 as they are; Windows writes a byte order mark and CRLF."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"one{mark}two?", "correct": [f"a{mark}b"]} for mark in ("\u2028", "\u2029", "\x85", " ")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for start, end in (("", "\n"), ("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n"), ("\r\n", "\r\n\r\n")):
        file.write_bytes((start + end.join(lines) + end).encode())
        found = load_prompts(str(file), 10)
        assert [(prompt.text, list(prompt.correct)) for prompt in found] == [
            (row["prompt"], row["correct"]) for row in rows
        ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb'{"prompt": "\ud800"}', "line 2 holds half a character, a lone surrogate"),
        (rb'{"prompt": "Why?", "correct": ["So.", "\udfff"]}', "line 2 holds half a character"),
        (rb'{"prompt": "Why?", "id": "\ud800"}', "line 2 holds half a character"),
        (b'{"prompt": "Why?", "id": NaN}', "line 2 cannot be read (NaN is no number of JSON)"),
        (b'{"prompt": "Why?", "odd": -Infinity}', "line 2 cannot be read (-Infinity is no number of JSON)"),
        (b'{"prompt": "Why?", "odd": ' + b"9" * 5000 + b"}", "line 2 cannot be read (Exceeds the limit"),
        (b'{"prompt": "Why?", "odd": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "line 2 cannot be read (maximum rec"),
        (b'{"prompt": "Why?", "prompt": "How?"}', "line 2 cannot be read (a name is given twice)"),
        (b'{"prompt": "Why?", "id": ["a"]}', 'line 2: "id" is neither a text nor a whole number'),
        (b'{"prompt": "Why?", "id": null}', 'line 2: "id" is neither a text nor a whole number'),
        (b'{"prompt": "\xed\xa0\x80"}', "the file is not UTF-8 text"),
        (b'{"prompt": "Wh\ry?"}', "line 2 is not JSON"),
    ],
    ids=range(12),
)
def test_a_line_that_is_no_prompt(tmp_path, line, reason):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "Why?"}\n' + line + b"\n")
    with pytest.raises(ParameterError) as caught:
        load_prompts(str(file), 10)
    assert str(caught.value).startswith(f"prompts = {str(file)!r}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_source_of_prompts_that_is_none(tmp_path, monkeypatch):
    """Whatever is here is not asked for on the hub; and what the hub says comes as one message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "prompts.json").write_text('{"prompt": "Why?"}')
    asked = []

    def load_dataset(name, split):
        asked.append(name)
        raise LookupError("no\nsuch data set")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    cases = {
        "owner/name": "is a folder here",
        "owner/name:train": "is a folder here",
        str(tmp_path): "is a folder here",
        ".": "is a folder here",
        "prompts.json": "is a file here",
        "folder.jsonl": "there is no such file",
        "~nobody-of-this-name/x.jsonl": "there is no such file",
        "./nowhere": "must be packaged, FILE.jsonl, or owner/name:split of the hub",
        "a b": "must be packaged",
        "a\nb": "must be packaged",
        "x" * 10**5 + "/" * 9: "must be packaged",
        "owner/other": "the hub does not give it (LookupError: no such data set)",
    }
    for source, reason in cases.items():
        with pytest.raises(ParameterError) as caught:
            load_prompts(source, 10)
        assert f": {reason}" in str(caught.value), source
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    assert asked == ["owner/other"]


def test_every_prompt_once_before_any_again():
    taken = order(5, 13, seed=3)
    assert sorted(taken[:5]) == sorted(taken[5:10]) == list(range(5)) and len(taken) == 13
    assert taken != order(5, 13, seed=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n\n", "holds no prompt"),
        (b'{"prompt": "Why?"}\n{"prompt": ', "line 2 is not JSON"),
        (b'{"prompt": "Why?"}\n{"question": "?"}', 'line 2 is not an object with a text "prompt"'),
        (b'{"prompt": "  "}', 'line 1 is not an object with a text "prompt"'),
        (b'["Why?"]', 'line 1 is not an object with a text "prompt"'),
        (b'{"prompt": "Why?", "correct": "So."}', 'line 1: "correct" is not a list of texts'),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_malformed_prompts(tmp_path, content, message):
    (tmp_path / "prompts.jsonl").write_bytes(content)
    with pytest.raises(ParameterError, match=message):
        load_prompts(str(tmp_path / "prompts.jsonl"), 10)


def test_prompts_that_are_not_there(tmp_path):
    with pytest.raises(ParameterError, match="no such file"):
        load_prompts(str(tmp_path / "prompts.jsonl"), 10)
    with pytest.raises(ParameterError, match="no such file"):
        load_prompts("packaged:nothing", 10)


def test_real_prompts_without_answers(tiny, tmp_path):
    """Plain instructions can be learned from with a likelihood oracle and no fitted head."""
    shared = llm_tools.ROOT.parent / "shared" / "data" / "alpaca_eval_instructions.jsonl"
    if not shared.exists():
        pytest.skip("the instructions are not at hand")
    rows = [json.loads(line) for line in shared.read_text(encoding="utf-8").splitlines()[:6]]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": row["instruction"]}) for row in rows))
    plain = {**tiny, "prompts": str(file), "steps": 4, "max_prompt_tokens": 64, "long_prompts": "truncate"}
    assert len(train(settings(**plain, head_start="zero"))) == 4
    with pytest.raises(ParameterError, match="head_start = 'answers' needs answers: prompt '1'"):
        train(settings(**plain))
    with pytest.raises(ParameterError, match="oracle = 'answer' needs answers"):
        train(settings(**plain, head_start="zero", oracle="answer"))


def test_prompts_that_are_too_long(tiny, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"id": "long", "prompt": "word " * 300}) + '\n{"prompt": "short"}')
    values = {**tiny, "prompts": str(file), "head_start": "zero", "steps": 2}
    with pytest.raises(
        ParameterError, match=r"1 of 2 prompts are longer, as long \(3\d\d\); raise it, or set long_prompts"
    ):
        train(settings(**values), tmp_path / "run")
    assert not (tmp_path / "run" / "references.pt").exists()
    made = Workbench(settings(**values, long_prompts="truncate"))
    assert len(made.prompt_ids[0]) <= 128
    # The template survives: the cut prompt still ends by asking for an answer.
    assert made.prompt_ids[0][-4:] == made.prompt_ids[1][-4:]
    with pytest.raises(ParameterError, match="the chat template alone is longer"):
        Workbench(settings(**values, long_prompts="truncate", max_prompt_tokens=8))
