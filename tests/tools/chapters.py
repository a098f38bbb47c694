"""A chapter is executed once, by nbval, and everything that needs its execution is taken from there.

nbval runs the cells and compares the table of claims with the committed one. Here the same execution is made to write
its results file, which a last item compares with the committed file. Both comparisons know that the last digit shown of
a number may be another one on another machine, and that nothing else may.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest

from fpo.results import decimals_at

FOLDER: pytest.StashKey[tempfile.TemporaryDirectory] = pytest.StashKey()
# A number with decimals; whole numbers are counts, which repeat. The groups: digits before and after the point.
DECIMAL = re.compile(r"(?<![\w.])-?\d[\d,]*\.(\d+)(?![\d.]*[e\w])")
OUTPUT_SECONDS = 600  # a busy machine may take its time to start a kernel, or to hand an output over


def snapped(text: str, committed: str) -> str:
    """`text` with each decimal number that is one unit in the last place off the committed one written like that.

    Examples
    --------
    >>> snapped("0.25 of 8, 1.50", "0.26 of 8, 1.7")
    '0.26 of 8, 1.50'
    """
    ours, theirs = list(DECIMAL.finditer(text)), list(DECIMAL.finditer(committed))
    if len(ours) != len(theirs):
        return text
    parts, end = [], 0
    for own, other in zip(ours, theirs, strict=True):
        values = [float(found[0].replace(",", "")) for found in (own, other)]
        same_place = len(own[1]) == len(other[1])
        near = same_place and abs(values[0] - values[1]) < 1.5 * 10.0 ** -len(own[1])
        parts += [text[end : own.start()], other[0] if near else own[0]]
        end = own.end()
    return "".join(parts) + text[end:]


def last_place(number: float, decimals: int | None) -> float:
    """One unit of the last digit that `results.plain` keeps of a number.

    Examples
    --------
    >>> last_place(3.92, 1), last_place(3.92, None), last_place(0.000123, None)
    (0.1, 1e-06, 1e-06)
    >>> last_place(1.23e-7, None)
    1e-09
    """
    if decimals is None and 0 < abs(number) < 1e-3:
        return 10.0 ** (math.floor(math.log10(abs(number))) - 2)
    return 10.0 ** -(6 if decimals is None else decimals)


def differences(ours, theirs, digits=None, where=""):
    """Paths at which two results differ by more than one unit of the last digit that they keep: see `results.plain`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        paths = {key: f"{where}.{key}".lstrip(".") for key in ours.keys() | theirs.keys()}
        unshared = [paths[key] for key in ours.keys() ^ theirs.keys()]
        shared = [key for key in ours if key in theirs]
        return unshared + [d for key in shared for d in differences(ours[key], theirs[key], digits, paths[key])]
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return [where]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for place, (a, b) in pairs for d in differences(a, b, digits, f"{where}.{place}")]
    if isinstance(ours, float) and isinstance(theirs, float):
        unit = max(last_place(number, decimals_at(where, digits or {})) for number in (ours, theirs))
        return [] if abs(ours - theirs) < 1.5 * unit else [where]
    if isinstance(ours, str) and isinstance(theirs, str):
        return [] if snapped(theirs, ours) == ours else [where]
    return [] if ours == theirs and type(ours) is type(theirs) else [where]


class Results(pytest.Item):
    """The results that a chapter's execution has written are the committed ones."""

    def __init__(self, *, fresh: Path, **rest):
        super().__init__(**rest)
        self.fresh = fresh

    def runtest(self):
        assert self.fresh.is_file(), "the chapter wrote no results: see its cells"
        new = json.loads(self.fresh.read_text(encoding="utf-8"))
        file = self.path.parent / "results" / f"{self.path.stem}.json"
        committed = json.loads(file.read_text(encoding="utf-8"))
        assert committed["digits"] == new["digits"]
        found = []
        for part in ("notebook", "parameters", "results", "claims"):
            digits = committed["digits"] if part == "results" else None
            found += [f"{part}: {path}" for path in differences(committed[part], new[part], digits)]
        assert not found, "\n".join(["not what the chapter computes here:", *found[:40]])

    def repr_failure(self, excinfo):
        return str(excinfo.value)

    def reportinfo(self):
        return self.path, 0, f"{self.path.name}::results"


def extend(items: list[pytest.Item], folder: Path) -> None:
    """Let nbval's cells write results, compare claims digit by digit, and end each chapter with its results."""
    last = {}
    for item in items:
        if type(item).__name__ != "IPyNbCell":
            continue
        tags = item.cell.metadata.get("tags", [])
        item.output_timeout = OUTPUT_SECONDS
        if "parameters" in tags:
            item.cell.source += f"\nresults_path = {str(folder / f'{item.path.stem}.json')!r}"
        if "nbval-check-output" in tags:
            committed = "".join(output.get("text", "") for output in item.cell.outputs)
            item.sanitize = partial(snapped, committed=committed)
        last[item.path] = item
    for path, item in last.items():
        fresh = folder / f"{path.stem}.json"
        items.insert(items.index(item) + 1, Results.from_parent(item.parent, name="results", fresh=fresh))
