"""Questions with right and wrong reference answers: the package's own, a file, or TruthfulQA."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from fpo.llm.prompts import Prompt, hub_rows, load_prompts
from fpo.parameters import ParameterError, brief, one_line

COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
HUB_COLUMNS = ("question", "best_answer", "correct_answers", "incorrect_answers")
TRUTHFULQA = "truthfulqa/truthful_qa"


def _refuse(source: str, reason: str) -> NoReturn:
    raise ParameterError(f"questions = {brief(source, 300)}: {reason}")


def _made(source: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[Prompt]:
    found = []
    for number, row in enumerate(rows, 1):
        question, best, correct, incorrect = (row[column] for column in columns)
        # In the CSV a list is one text, its items separated by semicolons; on the hub it is a list.
        right, wrong = (
            [part.strip() for part in (value.split(";") if isinstance(value, str) else value or []) if part.strip()]
            for value in (correct, incorrect)
        )
        right = [text for text in dict.fromkeys([(best or "").strip(), *right]) if text]
        found.append(Prompt(f"truthfulqa-{number:03d}", (question or "").strip(), tuple(right), tuple(wrong)))
    return found


def _truthfulqa(source: str) -> list[Prompt]:
    try:
        if source == TRUTHFULQA:
            rows = hub_rows(partial(_refuse, source), source, "generation", split="validation")
            return _made(source, rows, HUB_COLUMNS)
        with open(os.path.expanduser(source), encoding="utf-8-sig", newline="") as file:
            return _made(source, csv.DictReader(file, strict=True), COLUMNS)
    except KeyError as error:
        _refuse(source, f"has no column {error}; needed are those of TruthfulQA, as {', '.join(COLUMNS)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _refuse(source, f"cannot be read ({one_line(error)})")


def load_questions(source: str) -> Sequence[Prompt]:
    """All questions of a source, each with at least one right and one wrong answer, the best right one first.

    Parameters
    ----------
    source : str
        `packaged:heldout`, the project's own; NAME.jsonl, as `fpo.llm.prompts.load_prompts` reads it; NAME.csv with the
        columns of TruthfulQA (Lin et al. 2022); or `truthfulqa/truthful_qa`, its generation split on the hub.

    Raises
    ------
    ParameterError
        If it is missing, has other columns, or holds a question without such answers.
    """
    if source == TRUTHFULQA or source.endswith(".csv"):
        found = _truthfulqa(source)
    elif source.endswith(".jsonl") or source.startswith("packaged"):
        found = list(load_prompts(source, 10**6))
    else:
        _refuse(source, f"must be packaged:heldout, NAME.jsonl, NAME.csv or {TRUTHFULQA}")
    for question in found:
        if not question.text or not question.correct or not question.incorrect:
            _refuse(source, f"question {brief(question.id)} lacks a text, a correct or an incorrect answer")
    if not found:
        _refuse(source, "holds no question")
    return found
