"""What several test files use."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Fault:
    """One breach of a contract: `where`, a page's path, or a notebook's cell, counted from 0 (-1: the whole of it)."""

    where: str | int
    kind: str
    detail: str

    def __str__(self) -> str:
        where = self.where
        if isinstance(where, int):
            where = "the notebook" if where < 0 else f"cell {where}"
        return f"{where}: {self.kind}: {self.detail}"
