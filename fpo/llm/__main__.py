"""python -m fpo.llm FOLDER [--profile NAME] [--file SETTINGS.yaml] [--set NAME=VALUE ...], or --list"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fpo.llm.settings import listed, read_yaml, settings
from fpo.parameters import ParameterError, brief, one_line


def _from_file(path: Path) -> dict[str, Any]:
    source = f"--file {brief(str(path), 300)}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ParameterError(f"{source}: cannot be read as UTF-8 text ({one_line(error)})") from None
    content = read_yaml(text, source)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ParameterError(f"{source}: holds {brief(content)}, must be a mapping, name: value")
    return content


def _assigned(texts: Iterable[str], profile: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if profile is None else {"profile": profile}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise ParameterError(f"--set {brief(text)}: must be NAME=VALUE")
        if name in found:
            raise ParameterError(f"--set {brief(text)}: {brief(name)} is given twice")
        found[name] = read_yaml(value, f"--set {brief(text)}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fpo.llm", description="Play one run, or go on with it.")
    parser.add_argument("folder", nargs="?", help="where the run is kept")
    parser.add_argument("--list", action="store_true", help="show every setting with its meaning and range, and end")
    parser.add_argument("--profile", help="where the defaults come from; if not given, smollm2-135m")
    parser.add_argument("--file", type=Path, help="a YAML file of settings; what the command line says goes before it")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, as YAML")
    given = parser.parse_args(arguments)
    if given.list:
        print(listed())
        return 0
    if given.folder is None:
        parser.error("the following arguments are required: folder")
    try:
        values = _from_file(given.file) if given.file else {}
        chosen = settings(**{**values, **_assigned(given.set, given.profile)})
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 1
    # Seconds to load: only for settings that can be played.
    from fpo.llm import FolderError, ModelError, TrainingError, train

    try:
        trace = train(chosen, given.folder)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    # A ValueError is a ParameterError, or says which file of the folder cannot be read.
    except (ValueError, ModelError, FolderError, TrainingError, OSError) as error:
        told = error if isinstance(error, ParameterError) else one_line(error, 2000) or type(error).__name__
        print(told, file=sys.stderr)
        return 1
    told = f"{len(trace)} steps, {trace[-1]['labels_asked']} oracle labels: {given.folder}/trace.jsonl"
    # A folder's name may hold what the terminal cannot show.
    encoding = sys.stdout.encoding or "utf-8"
    print(told.encode(encoding, "backslashreplace").decode(encoding))
    return 0


if __name__ == "__main__":
    sys.exit(main())
