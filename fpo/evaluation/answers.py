"""Answers to questions: written by a policy with an adapter, kept in one small file, and read back with a check.

    python -m fpo.evaluation.answers OUT.json --arm relaxed --adapter FOLDER

writes the answers of the packaged model with an adapter in PEFT's own format; without one, of the base.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from tqdm import tqdm

from fpo import files, results
from fpo.evaluation.questions import load_questions
from fpo.llm import decoding
from fpo.llm.models import Policy
from fpo.llm.prompts import Prompt
from fpo.llm.settings import settings
from fpo.llm.weights import ModelError
from fpo.parameters import ParameterError, brief, one_line

# With 0 for every random number the likeliest word is drawn.
GREEDY: dict[str, Any] = {"min_new_tokens": 0, "temperature": 1.0, "top_p": 1.0}


class Answers(BaseModel, strict=True, frozen=True):
    """One arm's answers, by the questions' ids; `cut` names those that the limit of tokens ended.

    What else a file says, such as its provenance, is not read.
    """

    arm: str = Field(min_length=1)
    answers: dict[str, str]
    cut: list[str] = []

    def to(self, questions: Sequence[Prompt]) -> list[str]:
        """The answers in the questions' order."""
        return [self.answers[question.id] for question in questions]


def checked(name: str, content: Any, questions: Sequence[Prompt]) -> Answers:
    """Answers out of a file's content or its bytes, one for every question and none for another.

    Raises
    ------
    ParameterError
        If the content is something else; the message names the file and the first fault.
    """
    try:
        found = (Answers.model_validate_json if isinstance(content, bytes) else Answers.model_validate)(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "content"
        raise ParameterError(f"answers {name}: {brief(where)}: {fault['msg']}") from None
    wanted, given = {question.id for question in questions}, set(found.answers)
    for kind, ids in (
        ("lacks an answer to", wanted - given),
        ("answers what was not asked:", given - wanted),
        ('says "cut" of', set(found.cut) - given),
    ):
        if ids:
            raise ParameterError(f"answers {name}: {kind} {brief(min(ids))} (and {len(ids) - 1} more of {len(wanted)})")
    return found


def read(path: Path, questions: Sequence[Prompt]) -> Answers:
    """An answer file: see `checked`.

    Raises
    ------
    ParameterError
        If it cannot be read or does not fit the questions.
    """
    try:
        return checked(str(path), path.read_bytes(), questions)
    except OSError as error:
        raise ParameterError(f"answers {path}: cannot be read ({one_line(error)})") from None


def write(
    policy: Policy, questions: Sequence[Prompt], system: str, max_new_tokens: int, batch: int = 28
) -> tuple[list[str], list[bool]]:
    """Greedy answers of at most so many tokens, and which of them the limit cut.

    Questions of like length are answered together: a batch's padding is then short.
    """
    ids = [policy.encode(question.text, system) for question in questions]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts, cut = [""] * len(ids), [False] * len(ids)
    for start in tqdm(range(0, len(order), batch), desc="answers", unit="batch"):
        rows = order[start : start + batch]
        asked, random = [ids[i] for i in rows], np.zeros((len(rows), 1, max_new_tokens))
        written = decoding.decode(policy.model, asked, random, policy.ends, **GREEDY)
        for i, (tokens,) in zip(rows, written.tokens, strict=True):
            texts[i], cut[i] = policy.text(tokens), tokens[-1] not in policy.ends
    return texts, cut


def main(arguments: list[str] | None = None) -> None:
    """The command; a fault that its user can mend is one line, and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m fpo.evaluation.answers", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the answer file")
    parser.add_argument("--arm", required=True, help="its name in the comparison")
    parser.add_argument("--adapter", default="packaged", metavar="FOLDER", help="in PEFT's format; else the base")
    parser.add_argument("--questions", default="packaged:heldout", help="see fpo.evaluation.questions")
    parser.add_argument("--tokens", type=int, default=64, choices=range(1, 4097), metavar="N", help="at most, 64")
    parser.add_argument("--note", default="", help="where the adapter comes from")
    given = parser.parse_args(arguments)
    try:
        files.destination(given.out)
        questions = load_questions(given.questions)
        own = settings(threads=1, policy=given.adapter)
        torch.set_num_threads(own.threads)
        began = time.perf_counter()
        texts, cut = write(Policy(own), questions, own.system, given.tokens)
        command = f"{parser.prog} {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
        made = results.provenance(command, time.perf_counter() - began, "fpo", "torch", "transformers", "peft")
        ids = [question.id for question in questions]
        content = {
            "arm": given.arm,
            "provenance": made | {"note": given.note},
            "questions": given.questions,
            "decoding": {"greedy": True, "max_new_tokens": given.tokens, "system": own.system},
            "answers": dict(zip(ids, texts, strict=True)),
            "cut": [id for id, short in zip(ids, cut, strict=True) if short],
        }
        files.save_json(given.out, content)
    except (ValueError, ModelError, OSError) as error:
        sys.exit(one_line(error, 2000))


if __name__ == "__main__":
    main()
