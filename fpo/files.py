"""Files that are there in full or not at all, and the state of long work kept in them."""

import ast
import hashlib
import importlib.util
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = b"\nsha256 "


def destination(path: str | Path) -> Path:
    """The regular file that `path` names, links followed: one that is there, or that can be made.

    Raises
    ------
    OSError
        If `path` names a folder, a device or anything else, or lies in no folder, or may not be written.

    Examples
    --------
    >>> destination(os.devnull)
    Traceback (most recent call last):
    OSError: ... cannot be written: it must name a regular file in an existing folder
    """
    target = Path(os.path.realpath(path))
    # A name that ends in a separator is a folder's, which Path forgets.
    fits = os.path.basename(path) not in ("", os.curdir, os.pardir) and target.parent.is_dir()
    if os.path.lexists(target):  # as a link that leads in a circle is, which does not "exist"
        fits = fits and target.is_file() and os.access(target, os.W_OK)
    if not fits or not os.access(target.parent, os.W_OK):
        raise OSError(f"{path} cannot be written: it must name a regular file in an existing folder")
    return target


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends, and vanishes if it raises.

    A file that is there keeps its mode, and a link goes on pointing to it; a new file gets the mode that the umask
    leaves.

    Raises
    ------
    OSError
        If `path` is no `destination`, before the block; or if there is no room. What was there stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("all of it")
    ...     print(Path(folder, "a.txt").read_text(), os.listdir(folder))
    all of it ['a.txt']
    """
    target = destination(path)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}")
    # Made by `open` and not by `tempfile`, which hides a file from everyone else: the umask can only be asked for by
    # setting it, and that is not safe beside other threads.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)  # an interrupt may come when it has already taken its place
        raise


def save_json(path: str | Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Write an object as JSON, whole or not at all; without indent as one line."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file, indent=indent, allow_nan=False)
        file.write("\n")


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values with its checksum, whole or not at all.

    Raises
    ------
    OSError
        As `replacing` does; what was at `path` then stays as it was.
    """
    import torch  # here and below: who saves no tensor, as results do not, need not wait until it is loaded

    # In memory first: torch turns the OSError of a full disk into a RuntimeError about a zip file.
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())
        file.write(MARK + hashlib.sha256(content.getbuffer()).hexdigest().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None where there is no file. Only tensors and plain values are read, never code.

    Raises
    ------
    ValueError
        If there is a file and it is not, to the last bit, one of `save`'s.
    """
    import torch

    if not path.exists():
        return None
    content, _, checksum = path.read_bytes().rpartition(MARK)
    refusal = f"{path} is damaged or no checkpoint of this program: remove it to start afresh"
    if checksum != hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise ValueError(refusal)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a type of its own for each thing that it does not read
        raise ValueError(refusal) from error


def code_digest(module: str) -> str:
    """Identifies the code that a module runs: its own and that of every module of its package that it imports.

    Comments, docstrings, layout and line numbers do not count, so that only a change of what is executed names other
    checkpoints; nor does it matter in which of the modules a function lies, as long as one of them imports another.
    """
    package, found, waiting = module.partition(".")[0], {}, [module]
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name)
        if name in found or spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] == package]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
                within = [f"{node.module}.{alias.name}" for alias in node.names]
                waiting += [str(node.module), *(each for each in within if _is_module(each))]
        found[name] = ast.dump(tree)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the name is a function's: its module has no parts
        return False
