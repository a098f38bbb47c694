"""What a reader asks of an edition (`make edition`), checked, and how the edition is marked.

Every fault ends in one message that names what was given, its value and what is allowed.
"""

import hashlib
import html
import importlib.metadata
import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fpo.results import commit

RECORD = "edition.json"


class BadInput(Exception):
    """What the caller gave cannot be used."""


def from_caller(path: str) -> Path:
    """A path as the caller meant it: make may have changed the folder since."""
    return (Path(os.environ.get("CALLER", ".")) / Path(path).expanduser()).resolve()


def read_folder(given: str, root: Path) -> Path:
    """The folder of an edition: new, empty or an earlier edition, and apart from the book's sources."""
    if not given:
        raise BadInput("OUT is missing: name a folder for the edition, as in OUT=my-edition")
    out = from_caller(given)
    if out.is_relative_to(root):
        build, top = root / "_build", root.joinpath(*out.relative_to(root).parts[:1])
        if top == root or out == build or (top.exists() and top != build and written(top) is None):
            raise BadInput(f"OUT is {given!r}, among the book's sources: choose a new folder, or one below _build")
    if out.exists() and not out.is_dir():
        raise BadInput(f"OUT is {given!r}, which is a file: choose a new or empty folder")
    refuse_strangers(out)
    parent = next(folder for folder in out.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"OUT is {given!r}, but {str(parent)!r} is no folder that can be written to")
    return out


def contents(folder: Path) -> dict[str, str | None]:
    """Digest of every file below a folder, by its path there; None for what is no regular file, such as a link."""
    found = {}
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() or not path.is_dir():
                name = path.relative_to(folder).as_posix()
                found[name] = digest(path) if path.is_file() and not path.is_symlink() else None
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(folder: Path) -> dict[str, Any] | None:
    """What an edition wrote into a folder, as in `contents`; None if the folder holds no record of one."""
    try:
        content = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, dict) else None


def refuse_strangers(out: Path) -> None:
    """Refuse a folder that holds anything that an edition did not write, or not as it is now: it would be lost."""
    there, ours = contents(out), written(out)
    if ours is not None:
        del there[RECORD]
        there = {name: found for name, found in there.items() if found is None or ours.get(name) != found}
    if there:
        names = ", ".join(sorted(there)[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
        raise BadInput(
            f"OUT is {str(out)!r}, which is not empty and holds what no edition wrote: {names}. "
            "Choose a new or empty folder, or an earlier edition as it was made"
        )


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, where the first would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for twice in (key for number, key in enumerate(keys) if key in keys[:number]):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_parameters(given: str, known: Mapping[str, Collection[str]]) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Title (or None) and a mapping of each notebook's name to the parameters that a reader's file sets."""
    if not given:
        raise BadInput("PARAMETERS is missing: name a YAML file, as in PARAMETERS=my.yaml")
    try:
        content = yaml.load(from_caller(given).read_text(encoding="utf8"), Loader=StrictLoader)
    except OSError as error:
        raise BadInput(f"PARAMETERS is {given!r}, which cannot be read: {error.strerror}") from None
    except Exception as error:  # beside YAMLError, the constructors raise a different type for each kind of damage
        raise BadInput(f"PARAMETERS is {given!r}, which is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadInput(f"PARAMETERS is {given!r}, which holds {content!r}: expected a mapping, notebook: parameters")
    title = content.pop("title", None)
    if title is not None and not (isinstance(title, str) and title.strip()):
        raise BadInput(f"title is {title!r}: expected a text")
    for name, values in content.items():
        if name != "all" and name not in known:
            raise BadInput(f"unknown notebook {name!r}: allowed are {', '.join([*known, 'all', 'title'])}")
        if not isinstance(values, dict) or not values:
            raise BadInput(f"{name} is {values!r}: expected a mapping, parameter: value")
    if not content:
        raise BadInput(f"PARAMETERS is {given!r}, which sets no parameter of any notebook")
    shared = content.get("all", {})
    for name, values in content.items():
        allowed = sorted(set().union(*known.values())) if name == "all" else known[name]
        for parameter, value in values.items():
            if parameter not in allowed:
                raise BadInput(f"{name}: unknown parameter {parameter!r} = {value!r}: allowed are {', '.join(allowed)}")
    return title, {
        name: {key: value for key, value in shared.items() if key in known[name]} | content.get(name, {})
        for name in known
    }


def mark(file: Path, title: str | None, parameters: dict[str, dict[str, Any]]) -> None:
    """Let a book's _config.yml say on every page that the numbers are not the published ones."""
    config = yaml.safe_load(file.read_text(encoding="utf8"))
    changes = [
        f"{name}: " + ", ".join(f"{key} = {shortened(value)}" for key, value in values.items())
        for name, values in parameters.items()
        if values
    ]
    banner = f"Edition with other parameters: {'; '.join(changes)}. These are not the published numbers."
    config["title"] = title or f"{config['title']} (edition with other parameters)"
    config["html"]["announcement"] = html.escape(banner)
    config["html"].pop("baseurl", None)  # its pages are not those that are published there
    config["sphinx"]["config"]["ogp_site_name"] = config["title"]
    file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf8")


def shortened(value: Any, width: int = 40) -> str:
    text = str(value)
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def record(
    file: Path, title: str | None, parameters: dict[str, dict[str, Any]], originals: Iterable[Path], root: Path
) -> None:
    """Write down what an edition was made from, and all that it wrote into its folder: a later one removes no more."""
    content = {
        "title": title,
        "parameters": parameters,
        "sha256": {path.relative_to(root).as_posix(): digest(path) for path in originals},
        "commit": commit(root),
        "python": platform.python_version(),
        "packages": packages(),
        "files": contents(file.parent),
    }
    file.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf8")


def packages() -> dict[str, str]:
    """The version of every installed package."""
    found = sorted(importlib.metadata.distributions(), key=lambda package: package.name.lower())
    return {package.name: package.version for package in found}
