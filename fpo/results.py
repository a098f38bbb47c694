"""Result files: what a notebook found, with what it was found, in one JSON object written atomically."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from fpo.claims import Claim, Text
from fpo.files import save_json
from fpo.parameters import NotebookParameters, brief


class ResultFile(BaseModel):
    """The schema of `notebooks/results/*.json`."""

    model_config = ConfigDict(extra="forbid")

    notebook: Text
    parameters: dict[str, Any]
    environment: dict[str, str]
    results: dict[str, Any]
    # Decimals that repeat on other machines where they are fewer than usual: see `plain`.
    digits: dict[str, int] = {}
    claims: list[Claim]


def environment(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named packages, and the kind of machine."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "system": sys.platform,
        "machine": platform.machine(),
    }


def commit(root: Path) -> str | None:
    """The commit of a checkout, a trailing + if files had been changed since; None where there is none to ask about."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    done = subprocess.run(ask, capture_output=True, text=True)
    return done.stdout.strip() or None


def provenance(made_by: str, seconds: float, *packages: str) -> dict[str, Any]:
    """Where a stored run comes from: the command that makes it, the commit, versions, hardware, wall time in seconds.

    The commit is that of this module's checkout: see `commit`.
    """
    return {
        "made_by": made_by,
        "commit": commit(Path(__file__).resolve().parents[1]),
        "environment": environment(*packages),
        "processors": os.cpu_count(),
        "wall_seconds": round(seconds, 1),
    }


def stored_run(name: str) -> dict[str, Any]:
    """The content of notebooks/runs/NAME.json, from the notebooks' folder, the repository's root, or this checkout.

    Raises
    ------
    FileNotFoundError
        If it is in none of them, as where only the module was installed.
    ValueError
        If the file is damaged.
    """
    for path in (place / f"{name}.json" for place in _places()):
        if path.is_file():
            return read_run(path)
    raise FileNotFoundError(f"no stored run {name}.json: start in a checkout of the book's repository")


def _places() -> list[Path]:
    # In a checkout two of these are one folder.
    places = (Path("runs"), Path("notebooks/runs"), Path(__file__).resolve().parents[1] / "notebooks" / "runs")
    return list(dict.fromkeys(place.resolve() for place in places))


def read_run(path: Path) -> dict[str, Any]:
    """The content of a stored run's file.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} is damaged ({brief(found)}): restore it, git checkout -- {path}")
    return found


def stored_runs(folder: str) -> dict[str, dict[str, Any]]:
    """The content of every file of notebooks/runs/FOLDER, by name, or nothing: see `stored_run`.

    Raises
    ------
    ValueError
        If a file is damaged.
    """
    there = [place / folder for place in _places() if (place / folder).is_dir()]
    return {path.stem: read_run(path) for path in sorted(there[0].glob("*.json"))} if there else {}


def decimals_at(path: str, digits: Mapping[str, int]) -> int | None:
    """Decimals that repeat on other machines at a dotted path, from the longest prefix in `digits`; None: the usual.

    Examples
    --------
    >>> decimals_at("final_utility.relaxed.3", {"final_utility": 1, "final_utility.relaxed": 2})
    2
    """
    parts = path.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((digits[prefix] for prefix in prefixes if prefix in digits), None)


def plain(value: Any, digits: Mapping[str, int] = MappingProxyType({}), path: str = "") -> Any:
    """`value` as JSON knows it: arrays as lists, NaN and infinity as null, floats with the digits that repeat.

    Floats are rounded to 6 decimals, those under 0.001 to 3 digits: more would differ from machine to machine. Where
    fewer repeat, `digits` says how many decimals are kept, by dotted path or its beginning.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item, digits, f"{path}.{place}".lstrip(".")) for place, item in enumerate(value)]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if not np.isfinite(number):
            return None
        decimals = decimals_at(path, digits)
        if decimals is None and abs(number) < 1e-3:
            return float(f"{number:.3g}") + 0.0
        # 0.0 is added so that a rounded -0.0 does not depend on the machine.
        return round(number, 6 if decimals is None else decimals) + 0.0
    return value


def with_arrays(part: Any, but: tuple[str, ...] = ()) -> Any:
    """What `plain` and a file have made of a study, with lists of numbers as arrays again: null is NaN.

    A list of objects stays one; entries whose names are in `but` stay as they are.

    Examples
    --------
    >>> with_arrays({"final": [1, None], "tuning": [None]}, but=("tuning",))
    {'final': array([ 1., nan]), 'tuning': [None]}
    """
    if isinstance(part, dict):
        return {name: value if name in but else with_arrays(value, but) for name, value in part.items()}
    if not isinstance(part, list):
        return part
    return [with_arrays(row, but) for row in part] if part and isinstance(part[0], dict) else np.array(part, float)


def bound(error: float, limit: float) -> float:
    """A rounding error as the bound that it stays under; the error itself where it does not.

    Examples
    --------
    >>> bound(3e-15, 1e-12), bound(0.5, 1e-12)
    (1e-12, 0.5)
    """
    return limit if abs(error) <= limit else float(error)


def write(
    notebook: str,
    parameters: NotebookParameters,
    results: Mapping[str, Any],
    claims: Iterable[Claim],
    packages: Iterable[str] = ("fpo", "numpy"),
    digits: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write a result file to `parameters.results_path`, all of it or nothing; an empty path writes nothing.

    `digits` names the results of which fewer decimals than usual repeat on other machines: see `plain`.

    Raises
    ------
    pydantic.ValidationError
        If the content does not fit `ResultFile`.
    OSError
        If the file cannot be written; an earlier file then stays as it was.
    """
    if not parameters.results_path:
        return
    content = ResultFile(
        notebook=notebook,
        parameters=parameters.model_dump(mode="json", exclude={"results_path"}),
        environment=environment(*packages),
        results=plain(results, digits),
        digits=dict(digits),
        claims=list(claims),
    )
    save_json(parameters.results_path, content.model_dump())
