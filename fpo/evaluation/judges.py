"""Two judges that need no network: one that has learned from labels what is true, one that compares with references."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from fpo.llm.head import fit_head
from fpo.llm.models import RewardModel
from fpo.llm.prompts import Prompt


def features(encoder: RewardModel, questions: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
    """What a frozen encoder reads of question and answer together, and a 1 for the constant: (n, p + 1), doubles."""
    read = encoder.features(list(answers), list(questions)).double()
    return torch.cat([read, torch.ones_like(read[:, :1])], dim=1)


def fit(read: torch.Tensor, labels: Sequence[bool], ridge: float) -> torch.Tensor:
    """Logistic regression: w that minimizes the mean of BCE(w . f, label) + (ridge / 2) |w|^2.

    Shapes: features (n, p + 1), labels (n,), result (p + 1,).
    """
    wanted = torch.tensor(np.asarray(labels, dtype=float))
    return fit_head(read, torch.zeros_like(read), ridge, wanted)


def fold(question: str, folds: int) -> int:
    """The fold of a question, by its text alone: the same for every answer to it, in every file and order."""
    return int(hashlib.sha256(" ".join(question.lower().split()).encode()).hexdigest(), 16) % folds


def cross_fitted(
    read: torch.Tensor, labels: Sequence[bool], questions: Sequence[str], folds: int, ridge: float
) -> np.ndarray:
    """P(true) of each answer, (n,), by a model that saw no label of an answer to the same question.

    Raises
    ------
    ValueError
        If the labels outside of a fold are all alike, as where there are too few questions.
    """
    label = np.asarray(labels, dtype=bool)
    part = np.array([fold(question, folds) for question in questions])
    found = np.empty(len(label))
    for each in np.unique(part):
        rest = part != each
        if len(np.unique(label[rest])) < 2:
            raise ValueError(f"{len(set(questions))} questions are too few for {folds} folds with both labels in each")
        weight = fit(read[torch.from_numpy(rest)], label[rest], ridge)
        found[~rest] = torch.sigmoid(read[torch.from_numpy(~rest)] @ weight).numpy()
    return found


def quality(probabilities: np.ndarray, labels: Sequence[bool], bins: int = 10) -> dict[str, Any]:
    """How good P(true) is against labels.

    Returns
    -------
    dict
        `accuracy` at one half, and `majority`, that of always giving the commoner label; `auc`, the chance that a true
        answer is put above a false one (Mann-Whitney, ties count half), NaN if all labels are alike; `brier`, the mean
        squared error; `calibration_error`, the mean of |predicted - observed| over `bins` of equal width, weighted by
        their size; `calibration`, a row (predicted, observed, count) of each bin that is not empty.
    """
    label = np.asarray(labels, dtype=bool)
    true, false = int(label.sum()), int((~label).sum())
    ranks = rankdata(probabilities)[label].sum()
    auc = (ranks - true * (true + 1) / 2) / (true * false) if true and false else np.nan
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = [
        (float(probabilities[places == k].mean()), float(label[places == k].mean()), int((places == k).sum()))
        for k in np.unique(places)
    ]
    return {
        "count": len(label),
        "accuracy": float(np.mean((probabilities > 0.5) == label)),
        "majority": max(true, false) / len(label),
        "auc": float(auc),
        "brier": float(np.mean((probabilities - label) ** 2)),
        "calibration_error": float(sum(n * abs(p - o) for p, o, n in rows) / len(label)),
        "calibration": rows,
    }


def similarity(encoder: RewardModel, questions: Sequence[Prompt], answers: Sequence[str]) -> np.ndarray:
    """Cosine to the nearest correct reference answer minus that to the nearest incorrect one, (n,), from -2 to 2."""
    known = list(dict.fromkeys(text for each in questions for text in (*each.correct, *each.incorrect)))
    place = {text: row for row, text in enumerate(known)}
    references, read = (
        torch.nn.functional.normalize(encoder.features(texts), dim=-1) for texts in (known, list(answers))
    )
    return np.array(
        [
            float((references[[place[t] for t in each.correct]] @ row).max())
            - float((references[[place[t] for t in each.incorrect]] @ row).max())
            for each, row in zip(questions, read, strict=True)
        ]
    )
