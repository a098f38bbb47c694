"""Claims with their evidence, and the ledger that counts the comparisons which share an error rate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints

from fpo import stats

Verdict = Literal["reproduced", "partly", "not reproduced", "new", "does not hold", "open"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Text = Annotated[str, StringConstraints(min_length=1)]


class Claim(BaseModel):
    """One claim with what was found and the rule that gave its verdict.

    `id` is unique in the book; `source` says who claims it; `value` is what was found, in words and rounded numbers;
    `rule` states how the verdict follows from the numbers. A `certain` claim is a theorem or a check of code, which
    cannot come out otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$")]
    statement: Text
    source: Text
    value: Text
    rule: Text
    verdict: Verdict
    certain: bool = False


def judge(*evidence: bool | None, ours: bool = False) -> Verdict:
    """The verdict on a claim in several parts, each found to hold (True), to fail (False), or undecided (None).

    `reproduced` if all hold, `not reproduced` if all fail; for a claim of ours, which nobody has made before, `new` and
    `does not hold`. `partly` if some hold. Where none holds and some are undecided, `open`: they tell `partly` from a
    failure.

    Examples
    --------
    >>> judge(True, None), judge(None, False), judge(False, False), judge(False, ours=True)
    ('partly', 'open', 'not reproduced', 'does not hold')
    """
    if evidence and all(evidence):
        return "new" if ours else "reproduced"
    if any(evidence):
        return "partly"
    if None in evidence or not evidence:
        return "open"
    return "does not hold" if ours else "not reproduced"


@dataclass(frozen=True)
class Evidence:
    """One part of what speaks for a claim: what was found, in words, and whether the part holds (None: undecided)."""

    found: str
    holds: bool | None


def number(value: float, spec: str = ".2f") -> str:
    """A number as claims show it.

    Examples
    --------
    >>> number(0.125), number(float("nan"))
    ('0.12', 'no number')
    """
    return format(value, spec) if np.isfinite(value) else "no number"


def jointly(*parts: Evidence) -> Evidence:
    """One part made of several that stand or fall together: it fails if one of them does, whatever is undecided.

    Examples
    --------
    >>> jointly(Evidence("3 of 4", None), Evidence("0 of 9", False))
    Evidence(found='3 of 4; 0 of 9', holds=False)
    """
    found = [part.holds for part in parts]
    holds = False if False in found else None if None in found else True
    return Evidence("; ".join(part.found for part in parts if part.found), holds)


def most(row: Mapping[str, Any], found: str = "{wins} of {pairs}", wins: bool = True) -> Evidence:
    """That most pairs of a comparison are wins, or that most are not: see `stats.most`; `found` may name entries."""
    return Evidence(found.format(**row), stats.most(row, wins))


def beyond(row: Mapping[str, Any], mark: float, found: str = "", above: bool = True) -> Evidence:
    """That what a comparison estimates lies above `mark` (or below), its whole interval; undecided if astride."""
    holds = above if row["low"] > mark else not above if row["high"] < mark else None
    return Evidence(found.format(**row), holds)


def under(value: float, limit: float, found: str = "") -> Evidence:
    """That |value| is under `limit`; undecided for NaN. `found` may name the `value`."""
    return Evidence(found.format(value=value), bool(abs(value) < limit) if np.isfinite(value) else None)


def close(value: float, wanted: float, width: float, found: str = "") -> tuple[Evidence, Evidence]:
    """That `value` lies within `width` of what is wanted, and within half of that; undecided for NaN."""
    return under(value - wanted, width, found.format(value=value)), under(value - wanted, width / 2)


def within(low: float, high: float, wanted: float, width: float, found: str = "") -> Evidence:
    """That an interval lies within `width` of what is wanted: fails if outside, is undecided if astride or NaN."""
    if wanted - width < low and high < wanted + width:
        return Evidence(found, True)
    return Evidence(found, False if low > wanted + width or high < wanted - width else None)


class Ledger:
    """The claims of a chapter, and the comparisons that were announced for them.

    Parameters
    ----------
    prefix : str
        What the ids of the chapter's claims begin with.
    families : int
        By name, how many comparisons share an error rate of 5 %: each gets an interval of level 1 - 0.05 / comparisons
        (Bonferroni), or all their p-values are adjusted together (`holm`).

    Examples
    --------
    >>> ledger = Ledger("game", main=2)
    >>> row = ledger.share([True] * 12)
    >>> ledger.claim("wins", "It wins.", most(row, "{wins} of {pairs} seeds"), rule="on most seeds")
    >>> ledger.claims[0].verdict, ledger.claims[0].value
    ('new', '12 of 12 seeds')
    >>> ledger.close()
    Traceback (most recent call last):
    ValueError: main: 1 of 2 comparisons were made
    """

    def __init__(self, prefix: str, **families: int):
        self.prefix = prefix
        self.families = families
        self.made = dict.fromkeys(families, 0)
        self.claims: list[Claim] = []

    def compare(
        self, first: Iterable[float], second: Iterable[float], family: str = "main", ends: bool = False
    ) -> dict[str, Any]:
        """A paired comparison: see `stats.paired`. It counts.

        With `ends` it is read from both ends: `losses` are the second's wins, with the same interval of their share,
        `losses_low` to `losses_high`. A tie is a win of neither: see `stats.most`.

        Raises
        ------
        ValueError
            If the family was not announced, or has made all its comparisons.
        """
        a, b, comparisons = _numbers(first), _numbers(second), self._count(family)
        row = stats.paired(a, b, comparisons)
        if ends:
            other = stats.paired(b, a, comparisons)
            row |= {"losses": other["wins"], "losses_low": other["low"], "losses_high": other["high"]}
        return row

    def share(self, hits: Iterable[bool], family: str = "main") -> dict[str, Any]:
        """The share of hits with its exact interval, as a comparison with one half. It counts.

        Raises
        ------
        ValueError
            As `compare` does.
        """
        hit = _numbers(hits)
        return self.compare(hit, np.full(len(hit), 0.5), family)

    def mean(self, differences: Iterable[float], family: str = "main") -> dict[str, Any]:
        """The mean of paired differences, `mean`, with Student's interval, `low` to `high`, of `pairs`. It counts.

        Raises
        ------
        ValueError
            As `compare` does.
        """
        values = _numbers(differences)
        low, high = stats.mean_interval(values, self._count(family))
        mean = float(values.mean()) if len(values) else np.nan
        return {"mean": mean, "low": low, "high": high, "pairs": len(values)}

    def holm(self, p_values: Mapping[Any, float], family: str = "main") -> dict[Any, float]:
        """Holm's adjusted p-values, by the tests' names, of a whole family: see `stats.holm`. Each counts.

        Raises
        ------
        ValueError
            If these are not all the comparisons that were announced for the family, and the first: fewer tests would
            be corrected too little.
        """
        announced, made = self.families.get(family, 0), self.made.get(family, 0)
        if not p_values or made or len(p_values) != announced:
            raise ValueError(f"{family}: {announced} comparisons were announced, and these are {made + len(p_values)}")
        self.made[family] = announced
        return dict(zip(p_values, stats.holm(list(p_values.values())), strict=True))

    def fewest(self, family: str = "main") -> int:
        """The fewest pairs of which an interval can lie above one half."""
        comparisons = self.families[family]
        return next(n for n in count(1) if stats.paired(np.ones(n), np.zeros(n), comparisons)["low"] > 0.5)

    def _count(self, family: str) -> int:
        """Count one more comparison of a family; how many were announced.

        Raises
        ------
        ValueError
            If that is a surplus.
        """
        announced = self.families.get(family, 0)
        if self.made.get(family, 0) >= announced:
            raise ValueError(f"{family}: {announced} comparisons were announced, and this is one more")
        self.made[family] += 1
        return announced

    def claim(
        self,
        name: str,
        statement: str,
        *evidence: Evidence,
        rule: str,
        source: str = "this book",
        certain: bool = False,
    ) -> None:
        """Put a claim down: what was found and the verdict follow from the evidence.

        Parameters
        ----------
        name : str
            The rest of the id.
        statement, rule, source, certain
            As in `Claim`.
        evidence : Evidence
            All parts; those with words make the claim's `value`.

        Raises
        ------
        ValueError
            If the id is taken.
        pydantic.ValidationError
            If the claim does not fit `Claim`.
        """
        id = f"{self.prefix}-{name}"
        if id in (claim.id for claim in self.claims):
            raise ValueError(f"{id}: there is a claim with this id")
        verdict = judge(*(part.holds for part in evidence), ours=source == "this book")
        value = "; ".join(dict.fromkeys(part.found for part in evidence if part.found))
        self.claims.append(
            Claim(
                id=id,
                statement=statement,
                source=source,
                value=value,
                rule=rule,
                verdict=verdict,
                certain=certain,
            )  # fmt: skip
        )

    def show(self) -> None:
        """Print the claims: the table that CI compares with the committed one."""
        for each in self.claims:
            verdict = f"{each.verdict}, certain" if each.certain else each.verdict
            print(f"{each.id}: {verdict}\n    {each.statement}\n    found: {each.value}\n    rule: {each.rule}")

    def close(self) -> None:
        """Check that every comparison that was announced has been made.

        Raises
        ------
        ValueError
            If some are missing: the others' intervals would be too wide.
        """
        short = [
            f"{name}: {self.made[name]} of {count}" for name, count in self.families.items() if self.made[name] < count
        ]
        if short:
            raise ValueError(f"{'; '.join(short)} comparisons were made")


def _numbers(values: Iterable[float]) -> np.ndarray:
    return np.asarray(values if hasattr(values, "__len__") else list(values), dtype=float)
