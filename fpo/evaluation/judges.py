"""Two judges that need no network: one that has learned from labels what is true, one that compares with references.

    python -m fpo.evaluation.judges LABELS.jsonl OUT.json

fits the first to TruthfulQA's labels by people (its file finetune_truth.jsonl) and writes it with its quality.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from fpo import files, results
from fpo.llm.head import fit_head
from fpo.llm.models import RewardModel
from fpo.llm.prompts import Prompt
from fpo.llm.settings import settings
from fpo.llm.weights import ModelError
from fpo.parameters import ParameterError, one_line

FOLDS = 5
RIDGES = (1e-4, 1e-3, 1e-2)
LABEL = re.compile(r"Q: (.*?)\nA: (.*)\nTrue:", re.DOTALL)


class ReadOnce:
    """An encoder that reads each text once: equal texts have equal features, whatever they are read beside."""

    def __init__(self, encoder: RewardModel) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, str | None], torch.Tensor] = {}

    def features(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> torch.Tensor:
        """As the encoder's."""
        asked = list(zip(texts, [None] * len(texts) if prompts is None else prompts, strict=True))
        if new := [each for each in dict.fromkeys(asked) if each not in self._known]:
            own, after = zip(*new, strict=True)
            self._known |= zip(new, self._encoder.features(own, None if prompts is None else after), strict=True)
        return torch.stack([self._known[each] for each in asked])


def features(encoder: RewardModel | ReadOnce, questions: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
    """What a frozen encoder reads of question and answer together, and a 1 for the constant: (n, p + 1), doubles."""
    read = encoder.features(list(answers), list(questions)).double()
    return torch.cat([read, torch.ones_like(read[:, :1])], dim=1)


def fit(read: torch.Tensor, labels: Sequence[bool], ridge: float) -> torch.Tensor:
    """Logistic regression: w that minimizes the mean of BCE(w . f, label) + (ridge / 2) |w|^2.

    Shapes: features (n, p + 1), labels (n,), result (p + 1,).
    """
    return fit_head(read, torch.zeros_like(read), ridge, torch.tensor(np.asarray(labels, dtype=float)))


def fold(question: str, folds: int) -> int:
    """The fold of a question, by its text alone: the same for every answer to it, in every file and order."""
    return int(hashlib.sha256(" ".join(question.lower().split()).encode()).hexdigest(), 16) % folds


def fit_folds(
    read: torch.Tensor, labels: Sequence[bool], questions: Sequence[str], folds: int, ridge: float
) -> torch.Tensor:
    """A judge for each fold of questions, (folds, p + 1), fitted to the answers to all other questions.

    Raises
    ------
    ValueError
        If the labels outside of a fold are all alike, as where there are too few questions.
    """
    label = np.asarray(labels, dtype=bool)
    part = np.array([fold(question, folds) for question in questions])
    found = []
    for each in range(folds):
        rest = part != each
        if len(np.unique(label[rest])) < 2:
            raise ValueError(f"{len(set(questions))} questions are too few for {folds} folds with both labels in each")
        found.append(fit(read[torch.from_numpy(rest)], label[rest], ridge))
    return torch.stack(found)


def crossed(judges: torch.Tensor, read: torch.Tensor, questions: Sequence[str]) -> np.ndarray:
    """P(true) of each answer, (n,), by the judge that saw no label of an answer to its question: see `fit_folds`."""
    part = torch.tensor([fold(question, len(judges)) for question in questions], dtype=torch.long)
    return torch.sigmoid((read * judges[part]).sum(-1)).numpy()


def within(scores: np.ndarray, labels: Sequence[bool], questions: Sequence[str]) -> float:
    """The share of pairs (a true and a false answer to one question) in which the true one is put higher; ties half.

    That is what a comparison of two policies rests on: easy and hard questions are the same for both. NaN without a
    pair.
    """
    label, (names, own) = np.asarray(labels, dtype=bool), np.unique(questions, return_inverse=True)
    right = pairs = 0.0
    for place in range(len(names)):
        gaps = np.subtract.outer(scores[(own == place) & label], scores[(own == place) & ~label])
        right += np.sum(gaps > 0) + np.sum(gaps == 0) / 2
        pairs += gaps.size
    return float(right / pairs) if pairs else np.nan


def quality(probabilities: np.ndarray, labels: Sequence[bool], bins: int = 10) -> dict[str, Any]:
    """How good P(true) is against labels.

    Returns
    -------
    dict
        `accuracy` at one half, and `majority`, that of always giving the commoner label; `auc`, the chance that a true
        answer is put above a false one (`within`, to any question), NaN if all labels are alike; `brier`, the mean
        squared error; `calibration_error`, the mean of |predicted - observed| over `bins` of equal width, weighted by
        their size; `calibration`, a row (predicted, observed, count) of each bin that is not empty.
    """
    label = np.asarray(labels, dtype=bool)
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    each = [places == place for place in np.unique(places)]
    rows = [(float(probabilities[own].mean()), float(label[own].mean()), int(own.sum())) for own in each]
    return {
        "count": len(label),
        "accuracy": float(np.mean((probabilities > 0.5) == label)),
        "majority": max(int(label.sum()), int((~label).sum())) / len(label),
        "auc": within(probabilities, labels, [""] * len(label)),
        "brier": float(np.mean((probabilities - label) ** 2)),
        "calibration_error": float(sum(n * abs(p - o) for p, o, n in rows) / len(label)),
        "calibration": rows,
    }


def similarity(encoder: RewardModel | ReadOnce, questions: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
    """Cosine to the nearest correct reference answer minus that to the nearest incorrect one, (n,), from -2 to 2."""
    known = list(dict.fromkeys(text for each in questions for text in (*each.correct, *each.incorrect)))
    references = dict(zip(known, normalize(encoder.features(known), dim=-1), strict=True))

    def nearest(texts: Sequence[str], row: torch.Tensor) -> float:
        return float((torch.stack([references[text] for text in texts]) @ row).max())

    rows = zip(questions, normalize(encoder.features(list(answers)), dim=-1), strict=True)
    return np.array([nearest(each.correct, row) - nearest(each.incorrect, row) for each, row in rows])


def read_labels(path: Path, each: int) -> tuple[list[str], list[str], list[bool]]:
    """Questions, answers and whether people called them true; of each question at most `each` answers, drawn by hash.

    Raises
    ------
    ParameterError
        If a line is no object with a `prompt` "Q: ...\\nA: ...\\nTrue:" and a `completion` " yes" or " no".
    """
    rows: dict[str, list[tuple[str, str, str, bool]]] = {}
    try:
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):  # some texts hold U+2028
            row = json.loads(line)
            question, answer = (part.strip() for part in LABEL.fullmatch(row["prompt"]).groups())  # type: ignore[union-attr]
            said = {" yes": True, " no": False}[row["completion"]]
            rows.setdefault(question, []).append((hashlib.sha256(line.encode()).hexdigest(), question, answer, said))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        where = f"line {sum(map(len, rows.values())) + 1}"
        raise ParameterError(f"labels {path}: {where} is no labeled answer of TruthfulQA ({one_line(error)})") from None
    _, questions, answers, labels = zip(*(row for own in rows.values() for row in sorted(own)[:each]), strict=True)
    return list(questions), list(answers), list(labels)


def main(arguments: list[str] | None = None) -> None:
    """The command; a fault that its user can mend is one line, and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m fpo.evaluation.judges", description=__doc__.split("\n")[0])
    parser.add_argument("labels", type=Path, help="JSON lines as TruthfulQA publishes them")
    parser.add_argument("out", type=Path, help="where the judge goes")
    parser.add_argument("--each", type=int, default=8, help="at most so many answers to a question, 8")
    given = parser.parse_args(arguments)
    try:
        files.destination(given.out)
        began = time.perf_counter()
        questions, answers, labels = read_labels(given.labels, given.each)
        torch.set_num_threads(1)
        read = features(RewardModel(settings(threads=1)), questions, answers)
        tried, judges = {}, {}
        for ridge in RIDGES:
            judges[ridge] = fit_folds(read, labels, questions, FOLDS, ridge)
            said = crossed(judges[ridge], read, questions)
            tried[ridge] = quality(said, labels) | {"within": within(said, labels, questions)}
        best = min(RIDGES, key=lambda ridge: tried[ridge]["brier"])
        command = f"{parser.prog} {given.labels.name} {given.out} --each {given.each}"
        content = {
            "provenance": results.provenance(command, time.perf_counter() - began, "fpo", "torch", "transformers"),
            "labels_sha256": hashlib.sha256(given.labels.read_bytes()).hexdigest(),
            "answers": len(labels),
            "questions": len(set(questions)),
            "ridge": f"{best:g}",
            "ridges": {f"{ridge:g}": row for ridge, row in tried.items()},
            "judges": judges[best].numpy(),
        }
        files.save_json(given.out, results.plain(content), indent=None)
    except (ValueError, ModelError, OSError, ArithmeticError) as error:
        sys.exit(one_line(error, 2000))


if __name__ == "__main__":
    main()
