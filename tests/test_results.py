"""Result files: their schema, their atomic writing, and the committed ones."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tools import chapters

from fpo import results
from fpo.claims import Claim
from fpo.linear import Config
from fpo.parameters import NotebookParameters

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "notebooks" / "results").glob("*.json"))


class Some(NotebookParameters, Config):
    """A notebook's parameters."""


CLAIM = Claim(id="a-b", statement="s", source="t", value="v", rule="r", verdict="new")


def test_plain_knows_every_type_and_hides_no_nan():
    values = {
        1: np.float64(1.23456789),
        "n": np.nan,
        "i": np.int64(3),
        "b": np.bool_(True),
        "a": np.array([-1.2345e-9, -0.0]),
    }
    assert results.plain(values) == {"1": 1.234568, "n": None, "i": 3, "b": True, "a": [-1.23e-9, 0.0]}
    assert str(results.plain(-0.0)) == "0.0"


def test_empty_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.write("x", Some(), {}, [])
    assert not list(tmp_path.iterdir())


def test_written_file_has_parameters_and_no_path(tmp_path):
    path = tmp_path / "x.json"
    results.write("x", Some(results_path=str(path), rm_decay=1e-13), {"a": {0: 1.0}}, [CLAIM])
    content = results.ResultFile(**json.loads(path.read_text()))
    assert content.parameters["gamma"] == 0.1 and "results_path" not in content.parameters
    assert content.parameters["rm_decay"] == 1e-13
    assert content.results == {"a": {"0": 1.0}} and content.environment["numpy"] == np.__version__


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("earlier")
    with pytest.raises(TypeError):
        results.write("x", Some(results_path=str(path)), {"a": object()}, [CLAIM])
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_a_stored_run_is_found_from_wherever_a_notebook_runs(tmp_path, monkeypatch):
    for folder in (ROOT, ROOT / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        assert results.stored_run("steering_cost")["rows"]
    with pytest.raises(FileNotFoundError, match="no stored run missing.json: start in a checkout"):
        results.stored_run("missing")


def test_provenance_names_the_commit_or_says_that_there_is_none(tmp_path, monkeypatch):
    found = results.provenance("make it so", 12.345, "numpy")
    assert found["made_by"] == "make it so" and found["wall_seconds"] == 12.3 and found["processors"] >= 1
    assert found["environment"]["numpy"] == np.__version__
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])
    monkeypatch.setattr(results, "__file__", str(tmp_path / "fpo" / "results.py"))
    assert results.provenance("make it so", 1.0)["commit"] is None


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_file_fits_the_schema(path):
    content = results.ResultFile(**json.loads(path.read_text()))
    assert content.notebook == path.stem and content.claims


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "runs").rglob("*.json")), ids=lambda path: path.stem)
def test_a_stored_run_says_where_it_comes_from(path):
    content = json.loads(path.read_text())
    if path.stem == "reported":  # what a paper says, and no run
        assert "arXiv" in content["source"]
        return
    if path.stem == "released":  # a part of a chapter's results, played with files that are not ours
        content = content["results"]["released"]
    elif "results" in content:
        content = results.ResultFile(**content).results
    found = content.get("provenance", content)
    assert found["wall_seconds"] > 0 and found["environment"]["python"]
    named = [word for word in found["made_by"].split() if "/" in word]
    assert named and all((ROOT / word).exists() for word in named)


def test_the_neural_chapter_played_part_of_its_stored_study_again():
    content = json.loads((ROOT / "notebooks" / "results" / "neural.json").read_text())
    assert content["results"]["repeats"] is True


def test_claim_ids_are_unique():
    ids = [claim["id"] for path in COMMITTED for claim in json.loads(path.read_text())["claims"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("quantity", ["final_utility", "peak_utility"])
@pytest.mark.parametrize("game", ["linear", "neural"])
def test_utilities_are_objects_arm_seed_number(game, quantity):
    content = json.loads((ROOT / "notebooks" / "results" / f"{game}.json").read_text())
    table = content["results"][quantity]
    assert list(table) == content["parameters"]["arms"]
    for row in table.values():
        assert list(row) == [str(seed) for seed in content["parameters"]["seeds"]]
        assert all(isinstance(number, float) for number in row.values())


# Digits that repeat, and the comparison that knows them


def test_fewer_digits_are_kept_where_fewer_repeat():
    digits = {"chaos": 1, "chaos.calm": 3, "gap.1": 2}
    values = {"chaos": {"a": np.array([1.234, 1.96]), "calm": 1.23456}, "gap": [1.23456789, 1e-9], "chaotic": 1.234}
    stored = results.plain(values, digits)
    assert stored == {"chaos": {"a": [1.2, 2.0], "calm": 1.235}, "gap": [1.234568, 0.0], "chaotic": 1.234}


def test_written_digits_are_those_that_were_asked_for(tmp_path):
    path = tmp_path / "x.json"
    results.write("x", Some(results_path=str(path)), {"a": 0.123456}, [CLAIM], digits={"a": 2})
    content = json.loads(path.read_text())
    assert content["results"] == {"a": 0.12} and content["digits"] == {"a": 2}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_digits_name_results_that_are_there(path):
    content = json.loads(path.read_text())
    for place in content["digits"]:
        found = content["results"]
        for key in place.split("."):
            assert key in found, place
            found = found[key]


ROLE = re.compile(r"\{result\}`(\w+)/([^:`|\\]+)\\*\|\.(\d+)([f%])`")


def shown_too_finely(text: str, digits: dict[str, dict[str, int]]) -> list[str]:
    """Numbers of a text that are shown with more decimals than their results file keeps."""
    found = []
    for role in ROLE.finditer(text):
        notebook, path, decimals, kind = role.groups()
        kept = results.decimals_at(path, digits[notebook])
        if kept is not None and int(decimals) + 2 * (kind == "%") > kept:
            found.append(role[0])
    return found


def test_no_number_is_shown_with_more_digits_than_repeat():
    digits = {path.stem: json.loads(path.read_text())["digits"] for path in COMMITTED}
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert len(ROLE.findall(text)) > 200
    assert shown_too_finely(text, digits) == []


def test_a_number_with_too_many_digits_is_seen():
    text = r"{result}`a/b.c|.2f` {result}`a/b.c\\|.1f` {result}`a/b|.1%` {result}`a/d|.6f` {result}`a/b.c|.0%`"
    assert shown_too_finely(text, {"a": {"b": 2, "b.c": 1}}) == [
        "{result}`a/b.c|.2f`", "{result}`a/b|.1%`", "{result}`a/b.c|.0%`",
    ]  # fmt: skip


def test_rounding_errors_are_stored_as_bounds():
    assert results.bound(-3e-16, 1e-12) == 1e-12 and results.bound(1e-11, 1e-12) == 1e-11
    assert np.isnan(results.bound(np.nan, 1e-12))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_no_rounding_error_is_stored_with_its_digits(path):
    """A number that small has no digits that repeat: it is a bound, a power of ten, or 0."""

    def numbers(value):
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from numbers(item)
        elif isinstance(value, float):
            yield value

    small = {value for value in numbers(json.loads(path.read_text())["results"]) if 0 < abs(value) < 1e-8}
    assert all(float(f"{value:.0e}") == value and f"{value:e}".startswith("1.0") for value in small), small


def test_differences_sees_what_it_should():
    ours = {"a": [1.0, None], "b": "x", "c": 1}
    assert chapters.differences(ours, {"a": [1.0 + 1e-9, None], "b": "x", "c": 1}) == []
    found = chapters.differences(ours, {"a": [1.00001, 0.0], "b": "y", "d": 1})
    assert sorted(found) == ["a.0", "a.1", "b", "c", "d"]


def test_differences_knows_each_numbers_digits():
    ours, digits = {"loose": {"a": 2.3}, "tight": 2.3, "count": 3}, {"loose": 1}
    assert chapters.differences(ours, {"loose": {"a": 2.4}, "tight": 2.3, "count": 3}, digits) == []
    theirs = {"loose": {"a": 2.5}, "tight": 2.30001, "count": 4}
    assert sorted(chapters.differences(ours, theirs, digits)) == ["count", "loose.a", "tight"]


def test_one_unit_of_the_last_digit_that_is_kept_may_differ_and_no_more():
    rng = np.random.default_rng(0)

    def same(ours, theirs):
        return chapters.differences({"a": ours}, {"a": theirs}) == []

    for value in rng.choice([-1, 1], 300) * 10 ** rng.uniform(-12, 4, 300):
        kept = results.plain(float(value))
        unit = 10.0 ** (np.floor(np.log10(abs(kept))) - 2) if abs(kept) < 1e-3 else 1e-6
        assert same(kept, kept + unit) and same(kept + unit, kept)
        assert not same(kept, kept + 20 * unit) and not same(kept + 20 * unit, kept)
        if abs(kept) > 1.01e-3 or abs(kept) < 9.9 * 100 * unit:  # the other number has the same unit
            assert not same(kept, kept + 2.2 * unit)
    assert not same(0.0, 2e-6)


@pytest.mark.parametrize(
    ("text", "committed", "same"),
    [
        ("0.25 of it", "0.26 of it", True),
        ("0.25 of it", "0.27 of it", False),
        ("0.99", "1.00", True),
        ("-0.00 and 1,234.5", "0.00 and 1,234.6", True),
        ("25 of 64", "26 of 64", False),
        ("under 1e-9", "under 1e-8", False),
        ("1.2e-9", "1.3e-9", False),
        ("0.2", "0.25", False),
        ("0.25", "0.25, 0.25", False),
        ("new 0.25", "partly 0.25", False),
        ("0.25%.", "0.26%.", True),
    ],
)
def test_only_the_last_digit_of_a_decimal_number_may_be_another_one(text, committed, same):
    assert (chapters.snapped(text, committed) == committed) == same


def test_headline_is_drawn_from_the_committed_results():
    spec = importlib.util.spec_from_file_location("headline", ROOT / "book" / "headline.py")
    headline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headline)
    drawn = (ROOT / "book" / "_static" / "headline.svg").read_text(encoding="utf-8")
    assert headline.digest(ROOT / "notebooks" / "results") in drawn
