"""Result files: their schema, their atomic writing, and the committed ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fpo import results
from fpo.linear import ARMS, Config
from fpo.parameters import NotebookParameters

COMMITTED = sorted((Path(__file__).parents[1] / "notebooks" / "results").glob("*.json"))


class Some(NotebookParameters, Config):
    """A notebook's parameters."""


CLAIM = results.Claim(id="a-b", statement="s", source="t", value="v", rule="r", verdict="new")


def test_plain_knows_every_type_and_hides_no_nan():
    values = {1: np.float64(1.23456789), "n": np.nan, "i": np.int64(3), "b": np.bool_(True), "a": np.array([-1e-9])}
    assert results.plain(values) == {"1": 1.234568, "n": None, "i": 3, "b": True, "a": [0.0]}
    assert str(results.plain(-1e-9)) == "0.0"


def test_verdict_rule():
    assert [results.verdict(True), results.verdict(False, True), results.verdict(False)] == [
        "reproduced",
        "partly",
        "not reproduced",
    ]


def test_empty_path_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.write("x", Some(), {}, [])
    assert not list(tmp_path.iterdir())


def test_written_file_has_parameters_and_no_path(tmp_path):
    path = tmp_path / "x.json"
    results.write("x", Some(results_path=str(path)), {"a": {0: 1.0}}, [CLAIM])
    content = results.ResultFile(**json.loads(path.read_text()))
    assert content.parameters["gamma"] == 0.1 and "results_path" not in content.parameters
    assert content.results == {"a": {"0": 1.0}} and content.environment["numpy"] == np.__version__


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("earlier")
    with pytest.raises(TypeError):
        results.write("x", Some(results_path=str(path)), {"a": object()}, [CLAIM])
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [{"id": "no spaces here"}, {"verdict": "proved"}, {"value": ""}, {"more": 1}])
def test_a_bad_claim_is_refused(fault):
    with pytest.raises(ValidationError):
        results.Claim(**{**CLAIM.model_dump(), **fault})


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_file_fits_the_schema(path):
    content = results.ResultFile(**json.loads(path.read_text()))
    assert content.notebook == path.stem and content.claims


def test_claim_ids_are_unique():
    ids = [claim["id"] for path in COMMITTED for claim in json.loads(path.read_text())["claims"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("quantity", ["final_utility", "peak_utility"])
def test_linear_utilities_are_objects_arm_seed_number(quantity):
    content = json.loads((Path(__file__).parents[1] / "notebooks" / "results" / "linear.json").read_text())
    table = content["results"][quantity]
    assert set(table) == set(ARMS)
    for row in table.values():
        assert list(row) == [str(seed) for seed in content["parameters"]["seeds"]]
        assert all(isinstance(number, float) for number in row.values())


@pytest.mark.parametrize(
    "evidence, expected",
    [
        ([True, True], "reproduced"),
        ([True, None], "partly"),
        ([True, False], "partly"),
        ([None, None], "partly"),
        ([None, False], "not reproduced"),
        ([False], "not reproduced"),
    ],
)
def test_judge(evidence, expected):
    assert results.judge(*evidence) == expected
