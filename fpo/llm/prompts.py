"""Prompts: the package's own, a JSONL file, or a data set of the hub by name."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from fpo.parameters import ParameterError, brief, one_line

DATA = Path(__file__).parent / "data"
KNOWN = {"id", "prompt", "messages", "correct", "incorrect", "keywords"}
PROBED = 10  # one training prompt in so many is kept as a probe; they lie in the file by category


@dataclass(frozen=True)
class Prompt:
    """A question with short answers to compare with, where it has any (see data/README.md).

    A chat's earlier `turns` are (role, content) each; `columns` is what else its row holds, for oracles of one's own.
    `reference` is the base's response, where an oracle is asked about another.
    """

    id: str
    text: str
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    reference: str | None = None


def _refuse(source: str, reason: str) -> NoReturn:
    raise ParameterError(f"prompts = {brief(source, 300)}: {reason}")


def _prompt(source: str, line: int, row: object) -> Prompt:
    where = f"line {line}"
    turns: tuple[tuple[str, str], ...] = ()
    if isinstance(row, dict) and "prompt" not in row and "messages" in row:
        turns = _turns(source, where, row["messages"])
        row = {**row, "prompt": turns[-1][1]}
        turns = turns[:-1]
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        _refuse(source, f'{where} is not an object with a text "prompt", or with "messages"')
    if type(row.get("id", line)) not in (str, int):
        _refuse(source, f'{where}: "id" is neither a text nor a whole number')
    lists = {}
    for name in ("correct", "incorrect", "keywords"):
        values = row.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            _refuse(source, f'{where}: "{name}" is not a list of texts')
        lists[name] = tuple(values)
    columns = {name: value for name, value in row.items() if name not in KNOWN}
    id = str(row.get("id", line))
    answers = lists["correct"], lists["incorrect"]
    made = Prompt(id, row["prompt"].strip(), *answers, lists["keywords"], turns=turns, columns=columns)
    try:
        told = (made.id, made.text, *made.correct, *made.incorrect, *made.keywords)
        "".join((*told, *(content for _, content in turns))).encode()
    except UnicodeEncodeError:
        _refuse(source, f"{where} holds half a character, a lone surrogate")
    return made


def _turns(source: str, where: str, messages: object) -> tuple[tuple[str, str], ...]:
    """A chat up to its last question; an answer that follows is left out, since it is to be written anew."""
    found = []
    for each in messages if isinstance(messages, list) else [None]:
        if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in ("role", "content")):
            _refuse(source, f'{where}: "messages" is not a list of objects with texts "role" and "content"')
        found.append((each["role"], each["content"]))
    while found and found[-1][0] != "user":
        found.pop()
    if not found:
        _refuse(source, f'{where}: "messages" holds none whose "role" is "user"')
    return tuple(found)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is given twice")
    return made


def _from_file(source: str, path: Path) -> list[Prompt]:
    try:
        if not path.is_file():
            _refuse(source, "there is no such file")
        # At "\n" alone: a text may hold what else counts as the end of a line. JSON skips the "\r" of a "\r\n".
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        _refuse(source, f"cannot be read ({one_line(error)})")
    except UnicodeDecodeError:
        _refuse(source, "the file is not UTF-8 text")
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                _refuse(source, f"line {number} is not JSON ({error.msg})")
            except (ValueError, RecursionError) as error:  # a number or a nesting without end
                _refuse(source, f"line {number} cannot be read ({one_line(error)})")
            found.append(_prompt(source, number, row))
    return found


def _from_hub(source: str, count: int) -> list[Prompt]:
    name, _, split = source.partition(":")
    if os.path.exists(name):
        _refuse(source, f"is a {'folder' if os.path.isdir(name) else 'file'} here; prompts are read from a FILE.jsonl")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?", source, re.ASCII):
        _refuse(source, "must be packaged, FILE.jsonl, or owner/name:split of the hub")
    rows = hub_rows(partial(_refuse, source), name, split=f"{split or 'train'}[:{count}]")
    if not {"prompt", "messages"} & set(rows.column_names):
        _refuse(source, f"the data set has no column prompt or messages, only {', '.join(rows.column_names)}")
    return [_prompt(source, number, _hub_row(number, row)) for number, row in enumerate(rows)]


def hub_rows(refuse: Callable[[str], NoReturn], *which: str, split: str) -> Any:
    """A split of a data set of the hub, by its name and, where it has several, its configuration; `refuse` gets the
    reason if there is none."""
    try:
        from datasets import load_dataset
    except ImportError:
        refuse("a data set of the hub needs the package datasets: pip install datasets")
    try:
        return load_dataset(*which, split=split)
    except Exception as error:  # datasets raises a different type for each reason
        refuse(f"the hub does not give it ({type(error).__name__}: {one_line(error)})")


def _hub_row(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A hub's row: what it calls `correct` or an id may be anything there, and goes to the columns with the rest."""
    kept = {"id": str(number), **{name: row[name] for name in ("prompt", "messages") if name in row}}
    return kept | {f"{name}_" if name in KNOWN else name: value for name, value in row.items() if name not in kept}


def load_prompts(source: str, count: int) -> Sequence[Prompt]:
    """The first `count` prompts of a source; fewer if it has fewer.

    Parameters
    ----------
    source : str
        `packaged` (training prompts), `packaged:probe` (one in ten of these), `packaged:study` (the other nine),
        `packaged:heldout` (questions on common misconceptions), the path of a file
        NAME.jsonl with a prompt in each line, or `owner/name:split` on the hub with a column `prompt`, or `messages`
        with a chat, of which the last question is answered anew.
    count : int
        At most so many.

    Raises
    ------
    ParameterError
        If it is missing, malformed (with the line's number) or empty.
    """
    if source.partition(":")[0] == "packaged":
        split = source.partition(":")[2] or "train"
        found = _from_file(source, DATA / f"{'train' if split in ('study', 'probe') else split}.jsonl")
        if split in ("study", "probe"):
            found = [each for place, each in enumerate(found) if (place % PROBED == 0) == (split == "probe")]
    elif source.endswith(".jsonl"):
        found = _from_file(source, Path(os.path.expanduser(source)))
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
    generator = random.Random(seed)
    taken: list[int] = []
    while len(taken) < steps:
        taken += generator.sample(range(count), count)
    return taken[:steps]
