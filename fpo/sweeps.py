"""A grid of settings, played cell by cell on dask: by processes of this machine, or by a cluster at its address.

A cell is a dictionary of settings. What plays it is a function, called as `play(**cell)`, or a `Notebook`; it gives a
row, an object of plain values. Each row is kept in a file of its own as soon as it arrives, by the process that called
`sweep`, so that a later call plays only what is missing. Who plays which cell, what becomes of a lost worker's cells,
and how often a cell is tried again is dask's part.
"""

import hashlib
import inspect
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fpo import files
from fpo.parameters import ParameterError, brief, one_line

Cell = dict[str, Any]
LIMIT = 3600  # seconds that a kernel may take to start, or a cell of a notebook to run


@dataclass(frozen=True)
class Notebook:
    """A chapter as a player: papermill executes it with the cell as parameters, and its results file gives the row.

    It has what this book's chapters have: a cell tagged `parameters`, one tagged `validate` that refuses what is not
    allowed, and the parameter `results_path`. It is executed in its own folder; workers elsewhere need it there too.
    `columns` names the row's entries, and where in `results` of the results file each stands: `paired.fall.wins`.
    """

    path: str
    columns: Mapping[str, str]

    def __call__(self, /, **cell: Any) -> dict[str, Any]:
        """Execute the notebook and give its row."""
        import papermill  # here and below: who plays a function needs none of it

        limits = {"start_timeout": LIMIT, "execution_timeout": LIMIT}
        with tempfile.TemporaryDirectory() as folder:
            written, where = Path(folder, "results.json"), Path(self.path).parent
            given = {**cell, "results_path": str(written)}
            papermill.execute_notebook(self.path, None, given, cwd=where, progress_bar=False, **limits)
            found = json.loads(written.read_text(encoding="utf-8"))["results"]
        row = {}
        for name, place in self.columns.items():
            row[name] = found
            for part in place.split("."):
                row[name] = row[name][int(part) if isinstance(row[name], list) else part]
        return row

    def digest(self) -> str:
        """Identifies the notebook's code and the columns."""
        cells = json.loads(Path(self.path).read_bytes())["cells"]
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        return hashlib.sha256(json.dumps([code, dict(self.columns)]).encode()).hexdigest()

    def faults(self, cells: Sequence[Cell]) -> list[str]:
        """What the notebook's own validation says of each cell, "" if nothing: one kernel for all.

        Raises
        ------
        ParameterError
            If the notebook has no cell tagged `validate`, or does not come to it with its own defaults.
        """
        import nbformat
        from nbclient import NotebookClient
        from papermill.translators import translate_parameters

        notebook = nbformat.read(self.path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        head = 1 + next((i for i, cell in enumerate(code) if "validate" in cell.metadata.get("tags", [])), -1)
        if not head:
            raise ParameterError(f"{self.path} has no cell tagged validate: nothing can be refused before any work")
        notebook.cells = code[:head]
        for cell in cells:
            source = translate_parameters(notebook.metadata.kernelspec.name, "python", cell, "Parameters")
            notebook.cells += [nbformat.v4.new_code_cell(source), deepcopy(code[head - 1])]
        settings: Any = {"timeout": LIMIT, "startup_timeout": LIMIT, "allow_errors": True}
        settings["resources"] = {"metadata": {"path": str(Path(self.path).parent)}}
        NotebookClient(notebook, **settings).execute()
        outputs = [[each for each in cell.outputs if each.output_type == "error"] for cell in notebook.cells]
        told = [one_line(f"{errors[0].ename}: {errors[0].evalue}") if errors else "" for errors in outputs]
        if broken := "".join(told[:head]):
            raise ParameterError(f"{self.path} does not come to its validation: {broken}")
        return [given or validated for given, validated in zip(told[head::2], told[head + 1 :: 2], strict=True)]


def grid(**axes: Iterable[Any]) -> list[Cell]:
    """Every combination of the axes' values, the last axis fastest.

    Examples
    --------
    >>> grid(gamma=[0.0, 0.1], steps=[1, 2])[:3]
    [{'gamma': 0.0, 'steps': 1}, {'gamma': 0.0, 'steps': 2}, {'gamma': 0.1, 'steps': 1}]
    """
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def sweep(
    play: Callable[..., Mapping[str, Any]],
    cells: Iterable[Cell],
    folder: str | Path,
    *,
    check: Callable[..., Any] | None = None,
    table: str | Path | None = None,
    scheduler: str = "",
    workers: int = 2,
    retries: int = 1,
    version: str = "",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Play every cell that `folder` does not hold yet, with a progress bar, and gather all rows.

    Parameters
    ----------
    play : callable or Notebook
        `play(**cell)` gives the cell's row, an object of what JSON knows (no NaN, no array) under names of its own.
    cells : iterable of dict
        The settings, as `grid` makes them: plain values, each cell once.
    folder : path
        Where finished cells are kept, a file each; made if it is not there. A folder belongs to one player.
    check : callable, optional
        `check(**cell)` raises a ValueError for what is not allowed, as a class of parameters does. A notebook checks
        by its own; the names of a function's arguments are checked in any case.
    table : path, optional
        A JSON file for all rows and failures, written when the sweep ends, whole or not at all.
    scheduler : str
        The address of a cluster's scheduler, such as tcp://10.0.0.1:8786; by default processes of this machine.
    workers : int
        How many, from 1 on, if there is no such address. Each has one thread: dask starts its workers, a cluster's
        too, with OMP_NUM_THREADS and its like at 1 unless the environment says otherwise.
    retries : int
        How often a cell that raises is tried again, from 0 on. One whose worker dies is tried again as often as the
        scheduler's setting `allowed-failures` says.
    version : str
        Whatever else a row depends on, as `files.code_digest("fpo.linear")` says for code: rows of another one do not
        count. Those of a notebook with other cells or columns do not in any case.

    Returns
    -------
    rows : list of dict
        Of each cell that is finished, in their order: its settings, and beside them what its player gave.
    failures : list of dict
        Of each that is not: its settings as `cell`, and the `error` of its last try in one line.

    Raises
    ------
    ParameterError
        Before any work: for a cell that is not allowed, or a number out of range.
    OSError
        Before any work if `table` cannot be written, or if a row cannot be.
    ValueError
        If a file of `folder` is not one that was written here.
    """
    cells = [dict(cell) for cell in cells]
    for name, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if not isinstance(value, int) or value < least:
            raise ParameterError(f"{name} = {brief(value)}: must be a whole number from {least} on")
    names, faults = _checked(play, cells, check, version)
    if faults or not cells:
        more = f"\n  and {len(faults) - 5} more" if faults[5:] else ""
        told = "".join(f"\n  {fault}" for fault in faults[:5])
        raise ParameterError(f"{len(faults)} of {len(cells)} cells are not allowed{told}{more}")
    if table is not None:
        files.destination(table)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder, name) for name in names]
    rows = {i: _kept(path) for i, path in enumerate(paths) if path.exists()}
    waiting, failures = [i for i in range(len(cells)) if i not in rows], {}
    if waiting:
        from distributed import Client, LocalCluster, as_completed  # who finds every cell kept needs none of it

        bar = tqdm(total=len(cells), initial=len(rows), desc="sweep", unit="cell")
        place: Any = nullcontext(scheduler)
        if not scheduler:
            one = {"threads_per_worker": 1, "env": {"TQDM_DISABLE": "1"}}  # one bar is enough
            # Any free port: the usual one may be another sweep's. A lost worker's cell tells of it, no log does.
            quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}
            place = LocalCluster(n_workers=min(workers, len(waiting)), **one, **quiet)
        with bar, place as cluster, Client(cluster) as client:
            futures = {client.submit(_row, play, cells[i], retries=retries, pure=False): i for i in waiting}
            for future in as_completed(futures):
                i, error = futures[future], future.exception()
                if error is None:
                    rows[i] = future.result()
                    files.save_json(paths[i], _with_checksum({"cell": cells[i], "row": rows[i]}))
                else:
                    # papermill's message is a whole traceback; what the notebook raised stands apart.
                    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
                    failures[i] = {"cell": cells[i], "error": one_line(f"{name}: {text}")}
                bar.update()
    gathered, failed = [cells[i] | rows[i] for i in sorted(rows)], [failures[i] for i in sorted(failures)]
    if table is not None:
        files.save_json(table, {"rows": gathered, "failures": failed})
    return gathered, failed


def _checked(
    play: Any, cells: list[Cell], check: Callable[..., Any] | None, version: str
) -> tuple[list[str], list[str]]:
    """The name of each cell's file, and what speaks against cells."""
    faults, names = [""] * len(cells), []
    if isinstance(play, Notebook) and cells:
        faults, version = play.faults(cells), version + play.digest()
    for i, cell in enumerate(cells):
        settings = ""
        try:
            inspect.signature(play).bind(**cell)
            if check is not None:
                check(**cell)
            settings = json.dumps([cell, version], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            faults[i] = faults[i] or one_line(error)
        names.append(hashlib.sha256(settings.encode()).hexdigest()[:24] + ".json")
        if settings and names.index(names[i]) < i:
            faults[i] = faults[i] or "is there twice"
    return names, [f"{brief(cell)}: {fault}" for cell, fault in zip(cells, faults, strict=True) if fault]


def _with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    # Of what a reader will find: JSON knows neither tuples nor names that are numbers.
    read_back = json.loads(json.dumps(content))
    return content | {"sha256": hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()}


def _kept(path: Path) -> dict[str, Any]:
    refusal = f"{path} is damaged: remove it, and its cell is played again"
    try:
        content = json.loads(path.read_bytes().decode())
        written = {name: content[name] for name in ("cell", "row")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(refusal) from error
    # Rows of an earlier version have no checksum.
    if content not in (written, _with_checksum(written)):
        raise ValueError(refusal)
    return content["row"]


def _row(play: Callable[..., Mapping[str, Any]], cell: Cell) -> dict[str, Any]:
    # On the worker, so that a row that cannot be kept is this cell's failure and nobody else's.
    row = dict(play(**cell))
    if both := row.keys() & cell.keys():
        raise ValueError(f"the row has a name of a setting: {', '.join(sorted(both))}")
    return json.loads(json.dumps(row, allow_nan=False))
