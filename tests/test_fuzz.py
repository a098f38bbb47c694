"""Whatever a reader gives: it is taken, or refused by one message of a known class, never by another error."""

from __future__ import annotations

import datetime
import fractions
import io
import json
import sys

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools.parameter_classes import CLASSES

from fpo import results
from fpo.llm import Settings, load_prompts
from fpo.llm.__main__ import main
from fpo.llm.settings import overridden
from fpo.parameters import ParameterError


def bounded(examples: int) -> settings:
    """The same examples on every machine, however busy it is."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    kept = {"derandomize": True, "database": None, "report_multiple_bugs": False}
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow, **kept)


def raw(text: str) -> bytes:
    """A text's bytes, with surrogates, which are no UTF-8."""
    return text.encode(errors="surrogatepass")


def endless() -> list:
    """A list that holds itself."""
    found: list = []
    found.append(found)
    return found


class Rude:
    """A value that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("two\nlines")


# Texts with surrogates and control characters, as YAML and JSON escapes may bring them.
TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", " ", "\0", "a\nb", "\x85", "\u2028", "\ud800", "x" * 10**5, "None", "auto", "packaged", "cuda", "kl", "/", "."]
)
# Hypothesis writes out what it samples from, which Python refuses for the longest numbers.
ENDLESS = st.just(5000).map(lambda digits: 10**digits)
FINITE = st.booleans() | st.integers() | st.floats() | st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**400, 1e-320])
NUMBERS = FINITE | ENDLESS | ENDLESS.map(int.__neg__)
ODDITIES = st.one_of(
    st.none(), st.binary(max_size=9), st.dates(), st.datetimes(), st.complex_numbers(), st.fractions(), st.decimals(),
    st.builds(Rude), st.builds(Rude).map(lambda value: [value]),
    st.sampled_from([
        np.int64(3), np.float64(0.5), np.float32(0.5), np.bool_(True), np.str_("kl"), np.zeros((3, 3)), np.array(1),
        np.datetime64("2020-01-01"), range(3), range(10**30), {1, 2}, (), [], {}, [[]], endless(), [endless()], int,
        len, b"\xff" * 10**4, bytearray(b"x"), [0] * 10**5, [1, 1], ["standard", ["relaxed"]], fractions.Fraction(1, 3),
        datetime.time(1), NotImplemented, ..., float("nan"), [float("nan")],
    ]),
)  # fmt: skip
VALUES = st.recursive(
    TEXTS | NUMBERS | ODDITIES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)


def assert_one_message(error: BaseException | str, faults: int = 1) -> None:
    """A line for each fault, and one for all where there are several; no line without end."""
    lines = str(error).splitlines()
    assert 1 <= len(lines) <= 1 + faults and all(line.strip() and len(line) < 3000 for line in lines), lines
    assert "Traceback" not in str(error)


@pytest.mark.parametrize("name", CLASSES)
@bounded(80)
@given(st.data())
def test_parameters(name, data):
    fields = st.sampled_from(sorted(CLASSES[name].model_fields))
    # The folder of results_path is this one, which is no place for what a text may name.
    values = data.draw(st.dictionaries(fields | TEXTS, VALUES, min_size=1, max_size=3))
    try:
        made = CLASSES[name](**values)
    except ParameterError as error:
        assert_one_message(error, len(values))
        assert_one_message("\n".join(error._render_traceback_()), len(values))
    else:
        assert values.keys() <= CLASSES[name].model_fields.keys()
        assert type(made)(**dict(made)) == made, "what was taken is taken again"


YAML_LIKE = st.text("ab01e.-+:,{}[]!&*?|>'\"#%@`~<= \n\t\r\0\ufeff\x85\u2028\ud800", max_size=24) | st.sampled_from(
    ["!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!binary é", "!!set [1]", "!!omap {a: 1}", "!!pairs 3",
     "!!python/object/apply:os.getcwd []", "&a [*a]", "&a {*a : 1}", "{<<: 3}", "{<<: {a: 1}, a: 2}", "{[1]: 2}", "0b_",
     "2020-99-99", "0001-01-01 00:00:00+23:59", "1e999", "9" * 5000, "[" * 300, "{a: " * 300, "? a", "=", "---\n---",
     "%YAML 3.0\n---\na: 1", "a: 1\na: 2", "&a [x, x, x]", "\ud800: 1"]
)  # fmt: skip
NAMES = st.sampled_from(sorted(Settings.model_fields)) | TEXTS
ASSIGNED = st.builds("{}{}{}".format, NAMES, st.sampled_from([": ", ":", "", ":\n "]), YAML_LIKE) | YAML_LIKE


@bounded(300)
@given(st.lists(ASSIGNED, max_size=3))
def test_overrides(entries):
    try:
        found = overridden(entries, own=["steps", "rule"])
    except ParameterError as error:
        assert_one_message(error)
        assert str(error).startswith("overrides: ")
        return
    assert len(found) == len(entries) and not found.keys() & {"steps", "rule"}
    try:
        Settings(**found)
    except ParameterError as error:
        assert_one_message(error, len(found))


# Prompts: rows that are nearly right, in lines that nearly are

PLAIN = st.recursive(
    TEXTS | FINITE | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ROWS = st.fixed_dictionaries(
    {"prompt": TEXTS.filter(str.strip) | PLAIN},
    optional={
        "id": PLAIN, "correct": st.lists(TEXTS) | PLAIN, "incorrect": PLAIN, "keywords": st.lists(TEXTS), "more": PLAIN
    },
)  # fmt: skip
LINES = st.one_of(
    st.builds(lambda row, plain: json.dumps(row, ensure_ascii=plain), ROWS, st.booleans()).map(raw),
    st.binary(max_size=20),
    st.sampled_from([
        b"", b"\r", b"null", b"NaN", b"[" * 10**5, b'{"prompt": "a", "prompt": "b"}', b"9" * 5000, b'{"prompt": "a"',
        b'{"prompt": "\\ud800"}', b'{"prompt": "a", "id": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
        b'{"prompt": 1e999}',
    ]),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


@bounded(300)
@given(
    lines=st.lists(LINES, max_size=3),
    start=st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"]),
    end=st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\x00", b"\xe2\x80\xa8"]),
    count=st.integers(1, 5),
)
def test_prompt_files(folder, lines, start, end, count):
    file = folder / "prompts.jsonl"
    file.write_bytes(start + end.join(lines))
    try:
        found = load_prompts(str(file), count)
    except ParameterError as error:
        assert_one_message(error)
        return
    assert 1 <= len(found) <= count
    for prompt in found:
        assert prompt.text.strip()
        json.dumps([prompt.id, prompt.text, *prompt.correct], ensure_ascii=False).encode()


@bounded(200)
@given(TEXTS | st.builds("{}{}".format, TEXTS, st.sampled_from([".jsonl", ":train", "/x", ":"])))
def test_sources_of_prompts(source):
    # None in place of a module: there is no data set of the hub on any machine.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        try:
            assert load_prompts(source, 3)
        except ParameterError as error:
            assert_one_message(error)


# A reader's edition

KNOWN = {"linear": ["gamma", "seeds"], "neural": ["outer_steps", "seeds"]}
EDITIONS = st.one_of(
    st.binary(max_size=30),
    YAML_LIKE.map(raw),
    st.builds("{}: {}".format, st.sampled_from(["title", "all", "linear", "linear: gamma"]), YAML_LIKE).map(raw),
    st.dictionaries(
        st.sampled_from(["title", "all", *KNOWN, "other", 3, None]),
        st.dictionaries(st.sampled_from(["gamma", "seeds", "other", 3, None]), st.none() | st.integers() | st.floats())
        | st.text()
        | st.none(),
        max_size=3,
    ).map(lambda content: yaml.safe_dump(content, sort_keys=False).encode()),
)


@bounded(300)
@given(content=EDITIONS)
def test_edition_files(build, folder, content):
    import edition  # beside book/build.py, which the fixture has put on the path

    file = folder / "edition.yaml"
    file.write_bytes(content)
    try:
        title, parameters = edition.read_parameters(str(file), KNOWN)
    except edition.BadInput as error:
        assert_one_message(error)
    else:
        assert title is None or title.strip()
        assert all(set(parameters[name]) <= set(KNOWN[name]) for name in KNOWN)


# The command line

WORDS = st.one_of(
    TEXTS,
    st.sampled_from(["--file", "--set", "--profile", "--", "-h", "--set=steps=3", "FILE", "--file=FILE"]),
    st.builds("--set={}{}{}".format, NAMES, st.sampled_from(["=", "=", ""]), YAML_LIKE),
)


class Kept(io.StringIO):
    """A stream that, as a terminal's, cannot show half a character."""

    def __init__(self, errors: str):
        super().__init__()
        self._errors = errors

    @property
    def encoding(self) -> str:
        return "utf-8"

    def write(self, text: str) -> int:
        return super().write(text.encode("utf-8", self._errors).decode("utf-8", "surrogatepass"))


@bounded(300)
@given(
    words=st.lists(WORDS, max_size=5),
    content=st.lists(st.builds("{}: {}\n".format, NAMES, YAML_LIKE), max_size=3).map("".join) | ASSIGNED,
    odd=st.sampled_from([b"", b"", b"\xff", b"\xef\xbb\xbf"]),
    end=st.sampled_from([None, KeyboardInterrupt(), ValueError("damaged"), OSError(28, "full")]),
)
def test_command_line(folder, words, content, odd, end):
    file = folder / "settings.yaml"
    file.write_bytes(odd + raw(content))

    def play(chosen, place):
        assert isinstance(chosen, Settings)
        if end is not None:
            raise end
        return [{"labels_asked": 2}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fpo.llm.train", play)
        out, told = Kept("strict"), Kept("backslashreplace")
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", told)
        try:
            status = main(["run", *(word.replace("FILE", str(file)) for word in words)])
        except SystemExit as left:  # argparse shows its usage and one message
            assert left.code in (0, 2) and (out if left.code == 0 else told).getvalue()
            return
    if status == 0:
        assert out.getvalue().startswith("1 steps, 2 oracle labels: ") and not told.getvalue()
    else:
        assert status in (1, 130) and not out.getvalue()
        assert_one_message(told.getvalue(), 60)


# Stored runs


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b'{"a": 1', b"\xff", b"[" * 10**5, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=range(8),
)
def test_a_damaged_stored_run(tmp_path, monkeypatch, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "some.json").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"some.json is damaged \(.*\): restore it, git checkout -- .*some.json"):
        results.stored_run("some")
