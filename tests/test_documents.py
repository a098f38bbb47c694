"""Every documented command runs: the Python snippets, the papermill commands, and the make targets."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
# Not run here: what sets the machine up anew, what rewrites the committed files, and what runs these very tests.
PLANNED = {"book", "test", "refresh", "lock", "clean"}
# The long studies, in a few iterations, and without replacing what they stored.
SHORTER = {
    "neural_64_seeds.yaml": shlex.split("-p outer_steps 6 -p checkpoints '' -p results_path ''"),
    "smollm2_study.yaml": shlex.split(
        "-p judged 4 -p steps 2 -p window 1 -p candidates 2 -p max_new_tokens 8 -p folder '' -p results_path ''"
    ),
}


def blocks(language):
    """Fenced blocks of a language with where they stand."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [
        pytest.param(match[1], id=f"{path.name}-{i}")
        for path in DOCUMENTS
        for i, match in enumerate(pattern.finditer(path.read_text(encoding="utf-8")))
    ]


def commands(start):
    """The commands of bash blocks that start with a word, comments cut off; one may run over several lines."""
    found = {}
    for block in blocks("bash"):
        for command in re.findall(r'^(?:[^"\n]|"[^"]*")+', block.values[0], re.M):
            command = command.split("   #")[0].split(" && ")[0].strip()
            if command.startswith(start):
                found[command] = pytest.param(command, id=re.sub(r"\W+", "-", command)[:60])
    for path in DOCUMENTS if start == "make" else []:
        for target in re.findall(r"`make ([a-z]+)`", path.read_text(encoding="utf-8")):
            found.setdefault(f"make {target}", pytest.param(f"make {target}", id=f"make-{target}"))
    return list(found.values())


def run(arguments, folder):
    # make tells by these whether it runs inside another one, as it does in `make test`.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CALLER")}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 2 and len(commands(".venv/bin/python")) >= 4 and len(commands("make")) >= 4


@pytest.mark.parametrize("source", blocks("python"))
def test_python_snippet(source, tmp_path):
    run([sys.executable, "-c", source], tmp_path)


@pytest.mark.parametrize("command", [c for c in commands(".venv/bin/python") if "pip install" not in c.values[0]])
def test_python_command(command, tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    _, *arguments = shlex.split(command)
    shorter = [part for name, parts in SHORTER.items() if name in command for part in parts]
    run([sys.executable, *arguments, *shorter], tmp_path)


@pytest.mark.parametrize("command", commands("make"))
def test_make_command(command, tmp_path):
    arguments = shlex.split(command)
    arguments = [re.sub(r"^OUT=", f"OUT={tmp_path}/", argument) for argument in arguments]
    plan = arguments[1] in PLANNED or not (ROOT / ".venv" / ".test").exists()
    run([*arguments, *(["--dry-run"] if plan else [])], ROOT)
