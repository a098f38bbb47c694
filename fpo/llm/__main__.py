"""python -m fpo.llm FOLDER [--profile NAME] [--file SETTINGS.yaml] [--set NAME=VALUE ...]"""

import argparse
import sys
from pathlib import Path

import yaml

from fpo.llm import FolderError, ModelError, TrainingError, settings, train
from fpo.parameters import ParameterError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fpo.llm", description="Play one run, or go on with it.")
    parser.add_argument("folder", help="where the run is kept")
    parser.add_argument("--profile", default="smollm2-135m", help="where the defaults come from")
    parser.add_argument("--file", type=Path, help="a YAML file of settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, as YAML")
    given = parser.parse_args(arguments)
    try:
        values = yaml.safe_load(given.file.read_text(encoding="utf-8")) if given.file else {}
        values = {"profile": given.profile, **values}
        for assignment in given.set:
            name, _, value = assignment.partition("=")
            values[name] = yaml.safe_load(value)
        trace = train(settings(**values), given.folder)
    except (ParameterError, ModelError, FolderError, TrainingError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(trace)} steps, {trace[-1]['labels']} oracle labels: {given.folder}/trace.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
