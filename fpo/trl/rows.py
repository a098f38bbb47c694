"""Rows as a trainer hands them over, the groups that they form over all processes, and who judges them."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from fpo.llm.labels import Labels, OracleError
from fpo.llm.oracles import log_odds
from fpo.parameters import ParameterError
from fpo.trl.head import Said, plain

Oracle = Callable[..., Sequence[float | None]]
Read = Callable[[Sequence[Said], Sequence[Said]], torch.Tensor]


def places_of(count: int, order: str) -> list[int]:
    """Where the rows lie that come next to each other.

    Raises
    ------
    ValueError
        If there is no second half.

    Examples
    --------
    >>> places_of(4, "strided")
    [0, 2, 1, 3]
    """
    if order == "consecutive":
        return list(range(count))
    if count % 2:
        raise ValueError(f"{count} rows in order = 'strided': must be twice the prompts, as OnlineDPO gives them")
    return [place for first in range(count // 2) for place in (first, first + count // 2)]


class Rows(NamedTuple):
    """Rows of prompt and completion, a prompt's next to each other, with their columns and features (n, p)."""

    prompts: list[Said]
    completions: list[Said]
    lengths: list[int]
    columns: dict[str, list[Any]]
    features: torch.Tensor

    @classmethod
    def of(
        cls,
        places: Sequence[int],
        prompts: Sequence[Said],
        completions: Sequence[Said],
        ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
        read: Read,
    ) -> Self:
        """The rows at these places, of those that a trainer handed over; lengths are in tokens, or else in words."""
        asked, told = [prompts[place] for place in places], [completions[place] for place in places]
        lengths = [len(ids[place]) if ids else len(plain(completions[place]).split()) for place in places]
        lists = {name: values for name, values in columns.items() if isinstance(values, list | tuple)}
        kept = {name: [each[place] for place in places] for name, each in lists.items() if len(each) == len(prompts)}
        return cls(asked, told, lengths, kept, read(asked, told).cpu())

    def group_size(self) -> int:
        """Completions to a prompt: its rows in a row, as most prompts have them; one that comes twice makes two groups.

        Raises
        ------
        ValueError
            If the rows are no whole groups.
        """
        runs: list[int] = []
        before = None
        for prompt in self.prompts:
            if not runs or prompt != before:
                runs.append(0)
            runs[-1] += 1
            before = prompt
        size = min(set(runs), key=lambda length: (-runs.count(length), length), default=0)
        if not size or any(length % size for length in runs):
            raise ValueError(
                f"{len(self.prompts)} rows are no groups of equal size (a prompt's rows in a row: "
                f"{', '.join(map(str, runs))}): see order"
            )
        return size


def gathered(own: Rows) -> tuple[Rows, int]:
    """The rows of all processes, in the order in which TRL gathers rewards, and where the own ones begin.

    Raises
    ------
    ValueError
        If there are processes that cannot be reached.
    """
    state = PartialState()
    if int(os.environ.get("WORLD_SIZE", "1")) > state.num_processes:
        raise ValueError(
            "groups may be split over processes that cannot be reached from here: start them with accelerate launch"
        )
    if state.num_processes == 1:
        return own, 0
    world = gather_object([own])
    rows = Rows(
        [prompt for part in world for prompt in part.prompts],
        [said for part in world for said in part.completions],
        [length for part in world for length in part.lengths],
        {name: [value for part in world for value in part.columns[name]] for name in own.columns},
        torch.cat([part.features for part in world]),
    )
    return rows, sum(len(part.prompts) for part in world[: state.process_index])


class Judge:
    """Who says what is better: an oracle of utility, or a judge of pairs. One process asks, and tells the others.

    Parameters
    ----------
    oracle, preference, labels
        As in `SteeredReward`.

    Raises
    ------
    ParameterError
        If there are both.
    """

    def __init__(self, oracle: Oracle | None, preference: Oracle | None, labels: str | Path | Labels | None) -> None:
        if oracle is not None and preference is not None:
            raise ParameterError("oracle and preference are both given: one of them says what is better")
        self._oracle, self._preference = oracle, preference
        self._labels = labels if isinstance(labels, Labels) else Labels(labels)

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return self._oracle is not None or self._preference is not None

    @property
    def pairs(self) -> bool:
        """Whether it judges pairs: what it says of a text is the log-odds of p*, against 0 of the reference."""
        return self._preference is not None

    @property
    def labels(self) -> int:
        """Labels that are known."""
        return len(self._labels)

    def of_all(self, rows: Rows) -> list[float | None]:
        """U of all rows' completions, None for an empty one, from what is known where it is.

        Raises
        ------
        ParameterError
            If there is no oracle.
        """
        if self._oracle is None:
            raise ParameterError("the reward has no oracle: there is no utility to log")
        asked = [row for row, said in enumerate(rows.completions) if plain(said).strip()]
        found = dict(zip(asked, self(rows, asked), strict=True))
        return [found.get(row) for row in range(len(rows.completions))]

    def of_references(self, rows: Rows, asked: Sequence[int], said: Sequence[Said]) -> list[float]:
        """U of the references to the prompts of these rows; 0 where pairs are judged, or nothing is."""
        return self._ask(rows, asked, said) if self._oracle is not None else [0.0] * len(asked)

    def __call__(self, rows: Rows, asked: Sequence[int]) -> list[float]:
        """U of the completions in these rows, or the log-odds of p* against their references."""
        found = self._ask(rows, asked, [rows.completions[row] for row in asked])
        if self._oracle is not None:
            return found
        return log_odds(found).tolist()

    def _ask(self, rows: Rows, asked: Sequence[int], said: Sequence[Said]) -> list[float]:
        """What is said of these texts, each known or asked for once.

        Raises
        ------
        OracleError
            In every process, if there is no answer, or one that is no preference.
        """
        keys = [[json.dumps(rows.prompts[row]), plain(text)] for row, text in zip(asked, said, strict=True)]
        if self._preference is not None:
            keys = [[*key, plain(rows.columns["reference"][row])] for key, row in zip(keys, asked, strict=True)]

        def ask(missing: list[int]) -> Sequence[float | None]:
            beside = {name: [values[asked[i]] for i in missing] for name, values in rows.columns.items()}
            prompts, texts = [rows.prompts[asked[i]] for i in missing], [said[i] for i in missing]
            if self._oracle is not None:
                return self._oracle(prompts=prompts, completions=texts, **beside)
            references = beside.pop("reference")
            found = self._preference(prompts=prompts, completions=texts, references=references, **beside)  # type: ignore[misc]
            if wrong := [value for value in found if value is not None and not 0 <= value <= 1]:
                raise ValueError(f"a preference of {wrong[0]:g}: must be from 0 to 1")
            return found

        told: list[Any] = [None, None]
        if PartialState().is_main_process:
            try:
                told[0] = self._labels(keys, ask)
            except OracleError as error:
                told[1] = str(error)
        if PartialState().num_processes > 1:
            broadcast_object_list(told)
        if told[0] is None:
            raise OracleError(told[1])
        return told[0]
