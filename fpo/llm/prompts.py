"""Prompts: the package's own, a JSONL file, or a data set of the hub by name."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpo.parameters import ParameterError

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Prompt:
    """A question with short answers to compare with, where it has any (see data/README.md)."""

    id: str
    text: str
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def _refuse(source: str, reason: str) -> None:
    raise ParameterError(f"prompts = {source!r}: {reason}")


def _prompt(source: str, line: int, row: object) -> Prompt:
    where = f"line {line}"
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        _refuse(source, f'{where} is not an object with a text "prompt"')
    lists = {}
    for name in ("correct", "incorrect", "keywords"):
        values = row.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            _refuse(source, f'{where}: "{name}" is not a list of texts')
        lists[name] = tuple(values)
    return Prompt(str(row.get("id", line)), row["prompt"].strip(), **lists)


def _from_file(source: str, path: Path) -> list[Prompt]:
    if not path.is_file():
        _refuse(source, "there is no such file")
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        _refuse(source, "the file is not UTF-8 text")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                _refuse(source, f"line {number} is not JSON ({error.msg})")
            found.append(_prompt(source, number, row))
    return found


def _from_hub(source: str, count: int) -> list[Prompt]:
    try:
        from datasets import load_dataset
    except ImportError:
        _refuse(source, "a data set of the hub needs the package datasets: pip install datasets")
    name, _, split = source.partition(":")
    rows = load_dataset(name, split=f"{split or 'train'}[:{count}]")
    if "prompt" not in rows.column_names:
        _refuse(source, f"the data set has no column prompt, only {', '.join(rows.column_names)}")
    return [_prompt(source, number, {"id": str(number), "prompt": text}) for number, text in enumerate(rows["prompt"])]


def load_prompts(source: str, count: int) -> Sequence[Prompt]:
    """The first `count` prompts of a source; fewer if it has fewer.

    Parameters
    ----------
    source : str
        `packaged` (training prompts), `packaged:heldout` (questions on common misconceptions), the path of a file
        NAME.jsonl with a prompt in each line, or `owner/name:split` on the hub with a column `prompt`.

    Raises
    ------
    ParameterError
        If it is missing, malformed (with the line's number) or empty.
    """
    if source.partition(":")[0] == "packaged":
        split = source.partition(":")[2] or "train"
        found = _from_file(source, DATA / f"{split}.jsonl")
    elif source.endswith(".jsonl"):
        found = _from_file(source, Path(source).expanduser())
    else:
        found = _from_hub(source, count)
    if not found:
        _refuse(source, "holds no prompt")
    return found[:count]


def order(count: int, steps: int, seed: int) -> list[int]:
    """Which prompt each step takes: every prompt once before any comes again, shuffled anew each time.

    Examples
    --------
    >>> sorted(order(3, 6, seed=1)[:3])
    [0, 1, 2]
    """
    generator, taken = random.Random(seed), []
    while len(taken) < steps:
        taken += generator.sample(range(count), count)
    return taken[:steps]
