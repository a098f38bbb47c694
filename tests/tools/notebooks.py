"""Faults of a notebook under the book's contract, found in the file alone: nothing is executed here.

That the outputs are still what the code computes is nbval's part.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat

from fpo.claims import VERDICTS
from tools import Fault

ROOT = Path(__file__).resolve().parents[2]
LONGEST_IDEA = 12  # lines of an open cell
COLUMNS = 76  # what a page shows of a line without scrolling
CLAIMS_SHARE = 0.12  # of the code lines may stand behind the claims' heading
# Tags that change what a page shows of a cell, and those that the contract knows.
SHOWN = re.compile(r"(hide|remove|scroll|full|margin|popout)[-_]")
KINDS = {"hide-input": "method", "remove-cell": "bookkeeping"}
BY_HAND = {"claim", "new", "number"}  # functions that the ledger replaces
RESULT_KEYS = {"notebook", "parameters", "environment", "results", "claims"}
# What editors and executors leave behind; it differs from run to run and tells a reader nothing.
LITTER = {"ExecuteTime", "collapsed", "execution", "papermill", "scrolled", "vscode"}
NOTEBOOK_LITTER = {"papermill", "toc", "vscode", "widgets"}
A_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|Users|private|var/folders)/|(?<![A-Za-z])[A-Za-z]:\\(?=\w)")


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def texts(output) -> Iterator[str]:
    """All text of an output; pictures are left out, but a drawing (SVG) is text."""
    yield output.get("text", "")
    yield from output.get("traceback", [])
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            text = value if isinstance(value, str) else json.dumps(value)
            yield re.sub(r"base64,[A-Za-z0-9+/=\s]+", "base64,", text)


def names_a_path(text: str) -> str | None:
    """The first path of somebody's machine in a text."""
    if found := A_PATH.search(text):
        return text[found.start() : found.start() + 60].split("\n")[0]
    return str(ROOT) if str(ROOT) in text else None


def parameters_of(cell) -> dict[str, ast.stmt]:
    """Name and statement of each parameter; anything else in the cell raises ValueError."""
    found = {}
    for statement in ast.parse(cell.source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not is_plain(statement.value):
            raise ValueError(f"line {statement.lineno} is not `name = plain value`")
        found[targets[0].id] = statement
    return found


def is_plain(value: ast.expr) -> bool:
    """A scalar, a string, a list of such, or list(range(...)), which saves writing out 64 seeds."""
    match value:
        case ast.Call(func=ast.Name("list"), args=[ast.Call(func=ast.Name("range"), args=bounds, keywords=[])]):
            return all(isinstance(bound, ast.Constant) for bound in bounds)
        case ast.List(elts=parts):
            return all(is_plain(part) for part in parts)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return True
    return isinstance(value, ast.Constant)


def _parameter_faults(cells: list) -> Iterator[Fault]:
    places = [i for i, cell in enumerate(cells) if "parameters" in tags(cell)]
    if len(places) != 1:
        yield Fault(-1, "parameters", f"{len(places)} cells are tagged parameters, not one")
        return
    place = places[0]
    cell = cells[place]
    following = next((i for i in range(place + 1, len(cells)) if cells[i].cell_type == "code"), None)
    if following is None or "validate" not in tags(cells[following]):
        yield Fault(place, "validate", "the next code cell is not tagged validate")
    try:
        found = parameters_of(cell)
    except (SyntaxError, ValueError) as error:
        yield Fault(place, "parameters", str(error))
        return
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for name, statement in found.items():
        if not commented & set(range(statement.lineno, statement.end_lineno + 1)):
            yield Fault(place, "parameters", f"{name} has no comment on its line")
    default = found.get("results_path")
    if default is None or not isinstance(default.value, ast.Constant) or default.value.value != "":
        yield Fault(place, "results_path", 'there is no parameter results_path = ""')


def _execution_faults(cells: list) -> Iterator[Fault]:
    code = [(i, cell) for i, cell in enumerate(cells) if cell.cell_type == "code"]
    for count, (i, cell) in enumerate(code, start=1):
        if cell.execution_count is None:
            yield Fault(i, "not executed", "the cell has no execution count")
        elif cell.execution_count != count:
            yield Fault(i, "order", f"execution count {cell.execution_count} where {count} is due")
        for output in cell.outputs:
            if output.output_type == "error":
                yield Fault(i, "error output", f"{output.get('ename')}: {output.get('evalue')}")
                continue
            if output.get("name") == "stderr":
                yield Fault(i, "stderr output", output.text.strip()[:120])
            if path := next(filter(None, map(names_a_path, texts(output))), None):
                yield Fault(i, "path in an output", path)


def _claims_faults(cells: list, name: str) -> Iterator[Fault]:
    places = [i for i, cell in enumerate(cells) if "nbval-check-output" in tags(cell)]
    if len(places) != 1:
        yield Fault(-1, "claims", f"{len(places)} cells are tagged nbval-check-output, not one")
    else:
        shown = "\n".join(text for output in cells[places[0]].get("outputs", []) for text in texts(output))
        if not any(verdict in shown for verdict in VERDICTS):
            yield Fault(places[0], "claims", "the tagged cell prints no table with verdicts")
    target = f"(claims-{name})="
    if not any(target in cell.source.splitlines() for cell in cells if cell.cell_type == "markdown"):
        yield Fault(-1, "target", f"no markdown cell has the line {target}")


def _warnings(source: str) -> list[str]:
    """What Python warns of when it compiles a cell; later versions print it among the outputs."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            compile(source, "cell", "exec")
        except SyntaxError:  # a magic command, or a cell that its execution reports
            return []
    return [str(each.message) for each in found]


def _style_faults(cells: list) -> Iterator[Fault]:
    if not cells or cells[0].cell_type != "markdown" or not re.search(r"^# \S", cells[0].source, re.MULTILINE):
        yield Fault(0 if cells else -1, "title", "the first cell is not markdown with a title")
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    modules = [found[1] for found in re.finditer(r"^(?:from|import) (fpo|torch|transformers)\b", code, re.MULTILINE)]
    if "fpo" in modules[1:] and modules[0] != "fpo":
        yield Fault(-1, "import order", f"fpo is imported after {modules[0]}, whose idle threads then spin")
    for i, cell in enumerate(cells):
        if litter := LITTER & set(cell.metadata):
            yield Fault(i, "metadata", f"the cell carries {', '.join(sorted(litter))}")
        if "injected-parameters" in tags(cell):
            yield Fault(i, "metadata", "the cell is one that papermill has injected")
        if cell.cell_type != "code":
            continue
        for warning in _warnings(cell.source):
            yield Fault(i, "warning", warning)
        if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
            given = cell.metadata.get("mystnb", {})
            wanted = [("image", "alt"), ("figure", "caption"), ("figure", "name")]
            for group, key in wanted:
                if not str(given.get(group, {}).get(key, "")).strip():
                    yield Fault(i, "figure", f"the cell's metadata has no mystnb.{group}.{key}")


def kind(cell) -> str:
    """Which of the three kinds a code cell is; anything else raises ValueError."""
    shown = sorted(tag for tag in tags(cell) if SHOWN.match(tag))
    if len(shown) > 1 or not set(shown) <= KINDS.keys():
        raise ValueError(f"tagged {', '.join(shown)}: must be none (idea), hide-input (method) or remove-cell")
    return KINDS[shown[0]] if shown else "idea"


def code_lines(cells: list) -> int:
    """Lines of code that are neither blank nor comment."""
    lines = (line.strip() for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def _card_faults(cells: list, name: str) -> Iterator[Fault]:
    first = cells[0] if cells else None
    if not first or first.cell_type != "markdown" or f":::{{summary}} {name}" not in first.source.splitlines():
        yield Fault(0, "card", f"the first cell is not markdown with the line :::{{summary}} {name}")


def _cell_faults(cells: list) -> Iterator[Fault]:
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        for number, line in enumerate(cell.source.splitlines(), start=1):
            if len(line) > COLUMNS:
                yield Fault(i, "wide line", f"line {number} has {len(line)} columns, more than {COLUMNS}")
        try:
            found = kind(cell)
        except ValueError as error:
            yield Fault(i, "kind", str(error))
            continue
        if found == "method":
            prompt = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
            if not re.fullmatch(r"Code: \S.*", prompt):
                yield Fault(i, "name", f"mystnb.code_prompt_show is {prompt!r}: must begin with 'Code: ' and a name")
        lines = len(cell.source.splitlines())
        if found == "idea" and lines > LONGEST_IDEA and "parameters" not in tags(cell):
            yield Fault(i, "long idea", f"{lines} lines shown open, more than {LONGEST_IDEA}")


def _ledger_faults(cells: list, name: str) -> Iterator[Fault]:
    used = False
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        try:
            nodes = list(ast.walk(ast.parse(cell.source)))
        except SyntaxError:  # a magic command, or what the execution reports
            continue
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        used = used or "Ledger" in names
        if "COMPARISONS" in names:
            yield Fault(i, "ledger", "comparisons are counted by hand (COMPARISONS): the ledger counts them")
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name in BY_HAND:
                yield Fault(i, "ledger", f"a function {node.name} is defined: the ledger has one")
    if not used:
        yield Fault(-1, "ledger", "the claims are made without a Ledger")
    target = f"(claims-{name})="
    place = next((i for i, cell in enumerate(cells) if target in cell.source.splitlines()), len(cells))
    late, whole = code_lines(cells[place:]), code_lines(cells)
    if late > CLAIMS_SHARE * whole:
        yield Fault(-1, "late code", f"{late} of {whole} lines of code stand behind {target}, above {CLAIMS_SHARE:.0%}")


def _results_faults(file: Path) -> Iterator[Fault]:
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    try:
        text = file.read_text(encoding="utf-8")
        given = json.loads(text, parse_constant=refuse)
        missing = RESULT_KEYS - given.keys()
    except FileNotFoundError:
        yield Fault(-1, "results", f"there is no results file {file.name}")
    except (ValueError, AttributeError) as error:
        yield Fault(-1, "results", f"{file.name} is no JSON object: {error}")
    else:
        if missing:
            yield Fault(-1, "results", f"{file.name} lacks {', '.join(sorted(missing))}")
        elif given["notebook"] != file.stem:
            yield Fault(-1, "results", f"{file.name} is of notebook {given['notebook']!r}")
        if path := names_a_path(text):
            yield Fault(-1, "results", f"{file.name} holds a path: {path}")


def faults(notebook: str | Path, results: str | Path | None = None) -> list[Fault]:
    """Every breach in one notebook; `results` is the folder of results files, next to the notebook by default."""
    notebook = Path(notebook)
    name = notebook.stem
    read = nbformat.read(notebook, as_version=4)
    found = [
        *_parameter_faults(read.cells),
        *_execution_faults(read.cells),
        *_claims_faults(read.cells, name),
        *_style_faults(read.cells),
        *_card_faults(read.cells, name),
        *_cell_faults(read.cells),
        *_ledger_faults(read.cells, name),
        *_results_faults(Path(results or notebook.parent / "results") / f"{name}.json"),
    ]
    if litter := NOTEBOOK_LITTER & set(read.metadata):
        found.append(Fault(-1, "metadata", f"the notebook carries {', '.join(sorted(litter))}"))
    return sorted(found)
