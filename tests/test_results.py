"""Result files: their schema, their atomic writing, and the committed ones."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import papermill
import pytest
from pydantic import ValidationError

from fpo import results
from fpo.linear import Config
from fpo.parameters import NotebookParameters

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "notebooks" / "results").glob("*.json"))


class Some(NotebookParameters, Config):
    """A notebook's parameters."""


CLAIM = results.Claim(id="a-b", statement="s", source="t", value="v", rule="r", verdict="new")


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


@pytest.mark.parametrize("fault", [{"id": "no spaces here"}, {"verdict": "proved"}, {"value": ""}, {"more": 1}])
def test_a_bad_claim_is_refused(fault):
    with pytest.raises(ValidationError):
        results.Claim(**{**CLAIM.model_dump(), **fault})


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_file_fits_the_schema(path):
    content = results.ResultFile(**json.loads(path.read_text()))
    assert content.notebook == path.stem and content.claims


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "runs").glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_run_says_where_it_comes_from(path):
    content = json.loads(path.read_text())
    if "results" in content:
        content = results.ResultFile(**content).results
    found = content.get("provenance", content)
    assert found["wall_seconds"] > 0 and found["environment"]["python"]
    named = [word for word in found["made_by"].split() if "/" in word]
    assert named and all((ROOT / word).is_file() for word in named)


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


@pytest.mark.parametrize(
    "evidence, expected",
    [
        ([True, True], "reproduced"),
        ([True, None], "partly"),
        ([True, False], "partly"),
        ([None, None], "open"),
        ([], "open"),
        ([None, False], "not reproduced"),
        ([False], "not reproduced"),
    ],
)
def test_judge(evidence, expected):
    assert results.judge(*evidence) == expected
    assert results.judge(*evidence, ours=True) == ("new" if expected == "reproduced" else expected)


# Relative; the language model computes in float32, whose last digits depend on the machine.
ROUNDING = {"llm_pipeline": 1e-3}


def differences(ours, theirs, where="results", rounding=1e-6):
    """Paths at which two JSON values differ by more than rounding."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        unshared = [f"{where}.{key}" for key in ours.keys() ^ theirs.keys()]
        return unshared + [
            d
            for key in ours.keys() & theirs.keys()
            for d in differences(ours[key], theirs[key], f"{where}.{key}", rounding)
        ]
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return [where]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}.{i}", rounding)]
    if isinstance(ours, float) and isinstance(theirs, float):
        return [] if abs(ours - theirs) <= rounding * (2 + abs(ours)) else [where]
    return [] if ours == theirs and type(ours) is type(theirs) else [where]


def test_differences_sees_what_it_should():
    ours = {"a": [1.0, None], "b": "x", "c": 1}
    assert differences(ours, {"a": [1.0 + 1e-9, None], "b": "x", "c": 1}) == []
    found = differences(ours, {"a": [1.00001, 0.0], "b": "y", "d": 1})
    assert sorted(found) == ["results.a.0", "results.a.1", "results.b", "results.c", "results.d"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_what_the_notebook_computes(path, tmp_path):
    fresh = tmp_path / path.name
    notebook = path.parents[1] / f"{path.stem}.ipynb"
    papermill.execute_notebook(
        notebook, None, {"results_path": str(fresh)}, cwd=notebook.parent, progress_bar=False, log_output=False
    )
    committed, new = json.loads(path.read_text()), json.loads(fresh.read_text())
    for part in ("notebook", "parameters", "results", "claims"):
        assert differences(committed[part], new[part], part, ROUNDING.get(path.stem, 1e-6)) == []


def test_headline_is_drawn_from_the_committed_results():
    spec = importlib.util.spec_from_file_location("headline", ROOT / "book" / "headline.py")
    headline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headline)
    drawn = (ROOT / "book" / "_static" / "headline.svg").read_text(encoding="utf-8")
    assert headline.digest(ROOT / "notebooks" / "results") in drawn
