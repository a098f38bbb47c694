"""Bad input ends before any work with one message that names the parameter, the value and the allowed range."""

import json
import os
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from nbclient import NotebookClient
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tools.parameter_classes import CLASSES

from fpo.linear import Config
from fpo.parameters import NotebookParameters, ParameterError, Parameters, read

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "linear.ipynb"

BAD = {
    "unknown arm": ({"arms": ["standard", "optimistic"]}, ["arms", "optimistic", "standard, relaxed, practical"]),
    "arm twice": ({"arms": ["standard", "standard"]}, ["arms", "at most once"]),
    "no arm": ({"arms": []}, ["arms", "[]", "at least one"]),
    "arms as a string": ({"arms": "standard"}, ["arms", "'standard'", "a list"]),
    "negative gamma": ({"gamma": -0.1}, ["gamma", "-0.1", "from 0 to"]),
    "zero steps": ({"steps": 0}, ["steps", "0", "from 1 to"]),
    "negative steps": ({"steps": -5}, ["steps", "-5", "from 1 to"]),
    "float steps": ({"steps": 300.0}, ["steps", "300.0", "whole number"]),
    "boolean steps": ({"steps": True}, ["steps", "True", "whole number"]),
    "float foresight": ({"foresight_steps": 2.5}, ["foresight_steps", "2.5", "whole number"]),
    "negative foresight": ({"foresight_steps": -1}, ["foresight_steps", "-1", "from 0 to"]),
    "empty seeds": ({"seeds": []}, ["seeds", "[]", "at least one"]),
    "duplicate seeds": ({"seeds": [1, 2, 1]}, ["seeds", "[1, 2, 1]", "distinct"]),
    "float seed": ({"seeds": [0, 1.0]}, ["seeds", "1.0", "whole number"]),
    "negative seed": ({"seeds": [-1]}, ["seeds", "-1", "from 0 to"]),
    "seeds as a number": ({"seeds": 3}, ["seeds", "3", "a list"]),
    "misspelt name": ({"gama": 0.1}, ["gama", "0.1", "no such parameter", "gamma"]),
    "NaN": ({"gamma": float("nan")}, ["gamma", "nan", "finite"]),
    "infinity": ({"action_cost": float("inf")}, ["action_cost", "inf", "finite"]),
    "string for a number": ({"gamma": "0.1"}, ["gamma", "'0.1'", "finite number"]),
    "number for a boolean": ({"through_oracle": 1}, ["through_oracle", "1", "True or False"]),
    "unknown estimator": ({"gradient": "backward"}, ["gradient", "'backward'", "closed-form", "forward-difference"]),
    "more signal than there is": ({"dimensions": 2}, ["signal_dimensions", "3", "number of dimensions"]),
    "seeds without end": ({"seeds": range(10**30)}, ["seeds", "range(0, 1", "at most 100,000"]),
    "two faults": ({"gamma": -1, "steps": 0}, ["2 parameters", "gamma = -1", "steps = 0"]),
}


@pytest.mark.parametrize("case", BAD)
def test_python_refuses(case):
    values, words = BAD[case]
    with pytest.raises(ParameterError) as caught:
        Config(**values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_says_what_it_takes(name):
    """The message for a value that nothing takes: one line with the name, the value and a range that is not empty."""
    for field in CLASSES[name].model_fields:
        with pytest.raises(ParameterError) as caught:
            CLASSES[name](**{field: {"no": "field takes this"}})
        _, line = str(caught.value).split("\n")
        start = f"  {field} = {{'no': 'field takes this'}}: must be "
        assert line.startswith(start)
        allowed = line.removeprefix(start)
        assert len(allowed) > 5 and not allowed.endswith("one of ")


def test_a_field_without_a_range_cannot_be_declared():
    with pytest.raises(TypeError, match="Silent.note states no allowed range"):

        class Silent(Parameters):
            note: str = ""


class Loud:
    """A value whose text is long and in several lines."""

    def __repr__(self):
        return "line\u2028line\nline " * 100


@pytest.mark.parametrize(
    "value",
    [
        Loud(), "x" * 10**6, "\ud800", "a\nb\u2028c\x85d", 10**5000, -(10**5000), np.zeros((9, 9)), [[0] * 99] * 99,
        {"a": Loud()}, b"\xff" * 999, [10**5000] * 9,
    ],
    ids=range(11),
)  # fmt: skip
def test_a_message_is_one_line_for_each_fault(value):
    """Whatever the value; and whatever the name, which a file or a command line may have brought."""
    with pytest.raises(ParameterError) as caught:
        Config(**{"gamma": value, "steps": value, "no\nsuch": value, "\ud800": value, "self": value})
    lines = str(caught.value).splitlines()
    assert len(lines) == 6 and all(len(line) < 600 for line in lines)
    assert lines[0] == "these 5 parameters are not allowed"
    for name in ("gamma", "steps", r"'no\nsuch'", r"'\ud800'", "self"):
        assert any(line.startswith(f"  {name} = ") for line in lines)


def test_replace_is_validated_too():
    with pytest.raises(ParameterError, match="gamma = -1"):
        Config().replace(gamma=-1)
    assert Config().replace(seeds=range(3)).seeds == (0, 1, 2)


def test_a_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Config().gamma = 1.0


def test_results_path_must_be_writable(tmp_path):
    NotebookParameters(results_path=str(tmp_path / "new.json"))
    NotebookParameters(results_path="")
    bad_ones = [tmp_path, tmp_path / "missing" / "file.json", f"{tmp_path}/folder/", "a\0b", "\ud800"]
    if os.name == "posix":
        (tmp_path / "link.json").symlink_to(tmp_path / "missing" / "file.json")
        bad_ones += [tmp_path / "link.json", tmp_path / ("long" * 99), "/dev/null/file.json", "/dev/null"]
    for bad in bad_ones:
        with pytest.raises(ParameterError, match="results_path = .*: must be empty, or a file in an existing folder"):
            NotebookParameters(results_path=str(bad))


class Both(NotebookParameters, Config):
    """What a notebook declares."""


def cells(*sources):
    """A notebook's namespace after its cells ran."""
    namespace = {"In": ["", "import numpy\nother = 1", *sources]}
    for source in sources:
        exec(source, namespace)
    return namespace


def test_read_takes_the_cells_and_nothing_else():
    namespace = cells("# Parameters, with their defaults\ngamma = 0.5  # weight\nsteps = 7", "# Parameters\nsteps = 9")
    namespace["later"] = 3.0
    found = read(Both, namespace)
    assert (found.gamma, found.steps, found.results_path) == (0.5, 9, "")


def test_read_refuses_a_misspelt_injected_name():
    with pytest.raises(ParameterError, match="gama = 1: no such parameter"):
        read(Both, cells("# Parameters, with their defaults\ngamma = 0.5", "# Parameters\ngama = 1"))


def test_read_lets_a_reader_correct_a_cell():
    wrong, right = "# Parameters, with their defaults\ngama = 0.5", "# Parameters, with their defaults\ngamma = 0.5"
    assert read(Both, cells(wrong, right)).gamma == 0.5


def test_read_sees_every_way_to_assign():
    source = "# Parameters\ngamma: float = 0.5\nsteps, dimensions = 7, 9\nsteps += 1\nlater: int"
    found = read(Both, cells(source))
    assert (found.gamma, found.steps, found.dimensions) == (0.5, 8, 9)


def test_read_refuses_a_cell_that_is_not_plain_python():
    magic = {"In": ["# Parameters\n%time steps = 3"], "steps": 3}
    with pytest.raises(ParameterError, match="is not plain Python"):
        read(Both, magic)


def test_read_needs_the_cell():
    with pytest.raises(ParameterError, match="no parameters found"):
        read(Both, {"In": [""], "Out": {}, "numpy": json, "_private": 1})


def test_read_without_a_history_takes_every_plain_value():
    fresh = {"In": [""], "Out": {}, "numpy": json, "_private": 1, "gamma": 0.5}
    assert read(Both, fresh).gamma == 0.5
    with pytest.raises(ParameterError, match="gama = 1: no such parameter"):
        read(Both, {**fresh, "gama": 1})


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The chapter up to its validation and one cell more, which tells whether anything ran after a refusal."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "validate" in cell.metadata.get("tags", []))
    notebook.cells = notebook.cells[: last + 1] + [nbformat.v4.new_code_cell("open('ran', 'w').close()")]
    path = tmp_path_factory.mktemp("head") / "linear.ipynb"
    nbformat.write(notebook, path)
    return path


# What papermill and a kernel may change: an injected cell, texts, numbers that JSON does not know.
THROUGH_A_KERNEL = [
    "unknown arm", "negative gamma", "zero steps", "negative steps", "float steps", "empty seeds", "duplicate seeds",
    "misspelt name", "NaN", "infinity",
]  # fmt: skip


@pytest.fixture(scope="module")
def refused(head, tmp_path_factory):
    """By case, the outputs of the cell that validates, and the files written: one kernel plays papermill's cells of all
    cases one after another, since a kernel takes longer to start than all of them."""
    folder = tmp_path_factory.mktemp("refused")
    played = nbformat.read(head, as_version=4)
    start = next(i for i, cell in enumerate(played.cells) if "parameters" in cell.metadata.get("tags", []))
    played.cells, checked = played.cells[:start], {}
    for case in THROUGH_A_KERNEL:
        given = {"results_path": "results.json", **BAD[case][0]}
        own = parameterize_notebook(load_notebook_node(str(head)), given)
        played.cells += own.cells[start:-1]
        checked[case] = played.cells[-1]
    NotebookClient(played, allow_errors=True, resources={"metadata": {"path": folder}}).execute()
    return {case: cell.outputs for case, cell in checked.items()}, list(folder.iterdir())


@pytest.mark.parametrize("case", THROUGH_A_KERNEL)
def test_a_kernel_refuses(case, refused):
    outputs, written = refused
    [error] = outputs[case]
    assert error.ename == "ParameterError"
    assert error.traceback == [f"ParameterError: {error.evalue}"], "Jupyter shows more than the message"
    for word in BAD[case][1]:
        assert word in error.evalue
    assert written == []


@pytest.mark.parametrize(
    ("values", "words"), [BAD["negative gamma"], ({"results_path": "missing/file.json"}, ["missing/file.json"])]
)
def test_papermill_refuses(values, words, head, tmp_path):
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(
            head,
            tmp_path / "out.ipynb",
            {"results_path": "results.json", **values},
            cwd=tmp_path,
            progress_bar=False,
            log_output=False,
        )
    assert caught.value.ename == "ParameterError"
    assert caught.value.traceback == [f"ParameterError: {caught.value.evalue}"], "Jupyter shows more than the message"
    for word in words:
        assert word in caught.value.evalue
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


def test_papermill_takes_good_values(head, tmp_path):
    papermill.execute_notebook(head, tmp_path / "out.ipynb", {"steps": 3}, cwd=tmp_path, progress_bar=False)
    assert (tmp_path / "ran").exists()


def test_parameters_have_a_json_schema():
    assert json.dumps(Both.model_json_schema())
