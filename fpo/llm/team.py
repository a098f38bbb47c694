"""The processes that share a run: their order, their streams of random numbers, their time and memory."""

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

Item = TypeVar("Item")


class Team:
    """The processes that share a run: one, or those that `accelerate launch` started. The first one leads."""

    def __init__(self) -> None:
        self.size, self.rank = 1, 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=not torch.cuda.is_available())
            self.size, self.rank = state.num_processes, state.process_index

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process is dealt of all items, in turns."""
        return items[self.rank :: self.size]

    def gather(self, items: list[Item]) -> list[Item]:
        """Every process's items, in the order in which `share` dealt them out."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        found = gather_object([items])
        return [found[i % self.size][i // self.size] for i in range(sum(map(len, found)))]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, reduction="sum")

    def bar(self, **how: Any) -> tqdm:
        """A progress bar, shown once."""
        # Without a word on it, tqdm heeds TQDM_DISABLE.
        return tqdm(**how) if self.leads else tqdm(**how, disable=True)


def seed_streams(seed: int, *address: int) -> None:
    """Start the process's own streams of random numbers: dropout draws from torch's, an oracle from any of them.

    With an address the streams are others than those of the seed alone.
    """
    if address:
        seed = int(np.random.SeedSequence([seed, *address]).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def peak_gib() -> float:
    """Most memory this process has held so far: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
