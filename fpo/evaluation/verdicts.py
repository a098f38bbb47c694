"""Verdicts on pairs of answers: each pair judged in both orders, and an error is never a tie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fpo import stats

# What a call says of the two answers in the order in which they were shown; None: no verdict came.
Shown = Literal["first", "second", "tie"]
# What both orders together say of a pair: the winner or a tie only where they agree.
Outcome = Literal["first", "second", "tie", "split", "error"]
TURNED: dict[Shown, Shown] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True)
class Judged:
    """A pair in both orders: `forward` as shown, `backward` with the answers swapped; None where a call failed."""

    forward: Shown | None
    backward: Shown | None
    reason: str = ""

    @property
    def outcome(self) -> Outcome:
        """`error` if a call failed; `split` if the orders disagree; else what both say."""
        if self.forward is None or self.backward is None:
            return "error"
        return self.forward if self.forward == TURNED[self.backward] else "split"


def counts(judged: Sequence[Judged]) -> dict[str, Any]:
    """`wins` of the first answers, `losses`, `ties`, `splits`, `errors`, and the exact test of wins against losses."""
    outcomes = [each.outcome for each in judged]
    wins, losses, ties = (outcomes.count(kind) for kind in ("first", "second", "tie"))
    return stats.binomial(wins, losses, ties) | {"splits": outcomes.count("split"), "errors": outcomes.count("error")}


def position_bias(judged: Sequence[Judged]) -> dict[str, Any]:
    """How often the answer that was shown first wins, over all calls that name a winner, with its exact interval.

    Zero bias is a share of one half: each answer is shown first as often as second.
    """
    said = [verdict for each in judged for verdict in (each.forward, each.backward)]
    return stats.binomial(said.count("first"), said.count("second"), said.count("tie"))
