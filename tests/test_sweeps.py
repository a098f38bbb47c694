"""Sweeps: nothing is played that is not allowed, nothing that is finished is lost or played twice."""

import json
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import dask
import nbformat
import pytest
from distributed import LocalCluster
from nbformat.v4 import new_code_cell, new_notebook
from tools.players import dies_at_two, fails_at_two, gives, plays, square

from fpo import files, linear, sweeps
from fpo.parameters import ParameterError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster():
    """The address of two workers who are restarted when they die; a cell that was there twice is given up."""
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
    ):
        patch.delenv("OMP_NUM_THREADS", raising=False)
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as workers:
            yield workers.scheduler_address


@pytest.fixture
def seen(tmp_path):
    (tmp_path / "seen").mkdir()
    return str(tmp_path / "seen")


def test_a_sweep_on_this_machine_is_gathered_and_a_second_one_plays_what_is_new(tmp_path, seen, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    table = tmp_path / "table.json"
    cells = sweeps.grid(x=[3, 1], folder=[seen])
    rows, failures = sweeps.sweep(square, cells, tmp_path / "cells", table=table, workers=1)
    # In the grid's order, and by workers of one thread.
    assert rows == [cell | {"squared": cell["x"] ** 2, "threads": "1"} for cell in cells] and failures == []
    assert json.loads(table.read_text()) == {"rows": rows, "failures": []}
    # Whatever is kept needs no worker at all.
    monkeypatch.setattr("distributed.LocalCluster", None)
    assert sweeps.sweep(square, cells[::-1], tmp_path / "cells") == (rows[::-1], [])
    assert plays(seen, 1) == plays(seen, 3) == 1


def test_a_sweep_beside_another_does_not_complain(tmp_path, seen, recwarn):
    with socket.socket() as taken:
        with suppress(OSError):  # another process has it, which is as good
            taken.bind(("", 8787))
            taken.listen()
        sweeps.sweep(square, sweeps.grid(x=[3], folder=[seen]), tmp_path / "cells")
    assert not [each for each in recwarn if "8787" in str(each.message)]


def test_a_cluster_is_named_by_its_address_and_nothing_else_changes(cluster, tmp_path, seen):
    cells = sweeps.grid(x=[0, 1, 2], folder=[seen])
    rows, _ = sweeps.sweep(square, cells, tmp_path / "cells", scheduler=cluster)
    assert [row["squared"] for row in rows] == [0, 1, 4]
    # Other code, other rows; the settings that are new are played, the others read.
    sweeps.sweep(square, cells[:1], tmp_path / "cells", scheduler=cluster, version="2")
    more, _ = sweeps.sweep(square, [*cells, {"x": 5, "folder": seen}], tmp_path / "cells", scheduler=cluster)
    assert more[:3] == rows and more[3]["squared"] == 25
    assert [plays(seen, x) for x in (0, 1, 2, 5)] == [2, 1, 1, 1]


def test_a_failure_is_listed_with_its_settings_and_stops_no_other_cell(cluster, tmp_path, seen):
    cells, table = sweeps.grid(x=[1, 2, 3], folder=[seen]), tmp_path / "table.json"
    rows, failures = sweeps.sweep(fails_at_two, cells, tmp_path / "cells", scheduler=cluster, table=table, retries=2)
    assert [row["x"] for row in rows] == [1, 3]
    assert failures == [{"cell": cells[1], "error": "OSError: no room for 2"}]
    assert json.loads(table.read_text())["failures"] == failures
    assert plays(seen, 2) == 3, "once, and twice again"
    Path(seen, "repaired").touch()
    rows, failures = sweeps.sweep(fails_at_two, cells, tmp_path / "cells", scheduler=cluster)
    assert [row["squared"] for row in rows] == [1, 4, 9] and failures == []
    assert (plays(seen, 1), plays(seen, 2), plays(seen, 3)) == (1, 4, 1)


def test_a_worker_that_is_killed_in_mid_sweep_loses_nothing(cluster, tmp_path, seen):
    cells = sweeps.grid(x=range(5), folder=[seen], times=[1])
    rows, failures = sweeps.sweep(dies_at_two, cells, tmp_path / "cells", scheduler=cluster)
    assert [row["squared"] for row in rows] == [0, 1, 4, 9, 16] and failures == []
    first, second = Path(seen, "plays-2").read_text().split()
    assert first != second, "nobody was killed: nothing was tested"


def test_a_cell_that_kills_every_worker_is_given_up(cluster, tmp_path, seen):
    cells = sweeps.grid(x=[2], folder=[seen], times=[99])
    rows, failures = sweeps.sweep(dies_at_two, cells, tmp_path / "cells", scheduler=cluster)
    assert rows == [] and failures[0]["cell"] == cells[0]
    assert failures[0]["error"].startswith("KilledWorker") and plays(seen, 2) == 2


def test_what_was_finished_before_an_interrupt_is_kept(cluster, tmp_path, seen, monkeypatch):
    kept, save = [], files.save_json

    def interrupted(path, content):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(content["cell"]["x"])
        save(path, content)

    cells = sweeps.grid(x=range(4), folder=[seen])
    monkeypatch.setattr(files, "save_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(square, cells, tmp_path / "cells", scheduler=cluster)
    monkeypatch.setattr(files, "save_json", save)
    rows, _ = sweeps.sweep(square, cells, tmp_path / "cells", scheduler=cluster)
    assert [row["squared"] for row in rows] == [0, 1, 4, 9] and len(kept) == 2
    assert [plays(seen, x) for x in kept] == [1, 1]


def test_a_row_that_cannot_be_kept_is_a_failure(cluster, tmp_path):
    cells = sweeps.grid(x=[1], what=["text", "number", "object", "fine"])
    rows, failures = sweeps.sweep(gives, cells, tmp_path, scheduler=cluster, retries=0)
    assert [row["what"] for row in rows] == ["fine"]
    told = {failure["cell"]["what"]: failure["error"] for failure in failures}
    assert "a name of a setting: x" in told["text"] and "JSON" in told["number"] and "JSON" in told["object"]


REFUSED = {
    "no cell": ([], {}, "cells"),
    "a setting out of range": ([{"gamma": 0.1}, {"gamma": -1.0}], {}, r"1 of 2 .*\n.*'gamma': -1.0.*must be a finite"),
    "an unknown setting": ([{"gama": 0.1}], {}, "gama"),
    "a cell twice": ([{"gamma": 0.1}, {"gamma": 0.1}], {}, "twice"),
    "no plain value": ([{"gamma": {1}}], {"check": None}, "JSON"),
    "many faults": ([{"gamma": -1.0 - k} for k in range(9)], {}, "9 of 9 (.*\n){6}.*4 more"),
    "no worker": ([{"gamma": 0.1}], {"workers": 0}, "workers = 0: must be"),
    "a share of a try": ([{"gamma": 0.1}], {"retries": 0.5}, "retries = 0.5: must be"),
}


@pytest.mark.parametrize(("cells", "changes", "told"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_any_work(tmp_path, cells, changes, told):
    def play(gamma):
        raise AssertionError("played")

    with pytest.raises(ParameterError, match=told):
        sweeps.sweep(play, cells, tmp_path / "cells", **{"check": linear.Config, **changes})
    assert not (tmp_path / "cells").exists()


def test_a_table_that_cannot_be_written_is_refused_and_so_is_a_damaged_cell(tmp_path, seen):
    cells = sweeps.grid(x=[1], folder=[seen])
    with pytest.raises(OSError, match="cannot be written"):
        sweeps.sweep(square, cells, tmp_path / "cells", table=tmp_path / "nowhere" / "table.json")
    (tmp_path / "cells").mkdir()
    for name in sweeps._checked(square, cells, None, "")[0]:
        (tmp_path / "cells" / name).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        sweeps.sweep(square, cells, tmp_path / "cells")
    assert plays(seen, 1) == 0


def test_a_kept_row_is_read_to_the_last_bit_or_refused(cluster, tmp_path, seen):
    cells, folder = sweeps.grid(x=[1.5], folder=[seen]), tmp_path / "cells"
    rows, _ = sweeps.sweep(square, cells, folder, scheduler=cluster)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    noticed = 0
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert sweeps.sweep(square, cells, folder) == (rows, []), flipped
        except ValueError as error:
            assert f"{path} is damaged: remove it" in str(error)
            noticed += 1
    assert noticed == len(whole)
    content = json.loads(whole)
    for changed in ({"row": {"y": 9.0}}, {"cell": {**content["cell"], "x": 2.5}}, {"sha256": ""}, {"more": 1}):
        path.write_text(json.dumps(content | changed))
        with pytest.raises(ValueError, match="damaged"):
            sweeps.sweep(square, cells, folder)
    # A row of an earlier version, which wrote no checksum.
    path.write_text(json.dumps({name: content[name] for name in ("cell", "row")}))
    assert sweeps.sweep(square, cells, folder) == (rows, []) and plays(seen, 1.5) == 1


CHAPTER = {
    "parameters": "# Parameters, with their defaults\na = 1.0  # any\nresults_path = ''  # where to",
    "validate": """\
from fpo import parameters
class Parameters(parameters.NotebookParameters):
    a: float = parameters.real(1.0, 0, 9, "a number")
config = parameters.read(Parameters, globals())""",
    "play": """\
import json, os
assert not config.results_path or config.a != 3, "three is too many"
if config.results_path:
    content = {"results": {"by": [{"half": config.a / 2}], "threads": os.environ["OMP_NUM_THREADS"]}}
    open(config.results_path, "w").write(json.dumps(content))""",
}


@pytest.fixture
def chapter(tmp_path):
    cells = [new_code_cell(source, metadata={"tags": [tag]}) for tag, source in CHAPTER.items()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "chapter.ipynb")
    columns = {"half": "by.0.half", "threads": "threads"}
    return sweeps.Notebook(str(tmp_path / "chapter.ipynb"), columns)


def test_a_notebook_is_swept_like_a_function(cluster, chapter, tmp_path):
    cells = sweeps.grid(a=[2.0, 3.0])
    rows, failures = sweeps.sweep(chapter, cells, tmp_path / "cells", scheduler=cluster, retries=0)
    assert rows == [{"a": 2.0, "half": 1.0, "threads": "1"}]
    assert failures == [{"cell": {"a": 3.0}, "error": "AssertionError: three is too many"}]
    # What is kept is of this notebook and these columns.
    other = sweeps.Notebook(chapter.path, {"half": "by.0.half"})
    before = chapter.digest()
    assert before != other.digest()
    shutil.copy(ROOT / "notebooks" / "linear.ipynb", chapter.path)
    assert before != chapter.digest()


def test_a_chapter_of_the_book_refuses_by_its_own_class_before_any_work(tmp_path):
    chapter = sweeps.Notebook(str(ROOT / "notebooks" / "linear.ipynb"), {})
    cells = [{"gamma": 0.2, "seeds": [1, 2]}, {"gamma": "much"}, {"gama": 0.2}]
    told = r"2 of 3 .*\n.*gamma = 'much': must be a finite number(.*\n)+.*'gama': 0.2.*no such parameter"
    with pytest.raises(ParameterError, match=told):
        sweeps.sweep(chapter, cells, tmp_path / "cells")
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(("change", "told"), [("", "no cell tagged"), ("1 / 0", "ZeroDivisionError")])
def test_a_notebook_that_cannot_refuse_is_refused(chapter, change, told):
    notebook = nbformat.read(chapter.path, as_version=4)
    notebook.cells[1].update({"source": change} if change else {"metadata": {}})  # the one tagged validate
    nbformat.write(notebook, chapter.path)
    with pytest.raises(ParameterError, match=told):
        chapter.faults([{"a": 1.0}])
