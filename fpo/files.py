"""Files that are there in full or not at all, and the state of long work kept in them."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends, and vanishes if it raises.

    Raises
    ------
    OSError
        If the folder cannot be written to; what was at `path` then stays as it was.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("all of it")
    ...     print(Path(folder, "a.txt").read_text(), os.listdir(folder))
    all of it ['a.txt']
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None where there is no file. Only tensors and plain values are read, never code.

    Raises
    ------
    ValueError
        If there is a file and it is not one of `save`'s.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different type for each kind of damage
        raise ValueError(f"{path} is not a checkpoint of this program ({error}): remove it to start afresh") from error
