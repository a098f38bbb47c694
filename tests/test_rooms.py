"""The house: which room may import which, and what it costs to enter one."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import fpo

PACKAGE = Path(fpo.__file__).parent
NOTHING: set[str] = set()


def llm(rooms):
    return {f"llm.{room}" for room in rooms.split()}


# What each room of the module may import of it. Imports point down only.
TABLE = {
    "fpo": NOTHING,
    "fpo.steering": NOTHING,
    "fpo.landscapes": NOTHING,
    "fpo.parameters": NOTHING,
    "fpo.files": NOTHING,
    "fpo.stats": NOTHING,
    "fpo.figures": NOTHING,
    "fpo.monitor": NOTHING,
    "fpo.mlp": {"steering", "landscapes"},
    "fpo.rules": {"steering"},
    "fpo.games": {"parameters", "landscapes"},
    "fpo.linear": {"games", "landscapes", "parameters"},
    "fpo.remedies": {"mlp"},
    "fpo.moves": {"games", "landscapes", "parameters"},
    "fpo.neural": {"games", "landscapes", "mlp", "moves", "files", "parameters", "remedies"},
    "fpo.unrolled": {"mlp", "neural"},
    "fpo.claims": {"stats"},
    "fpo.results": {"claims", "files", "parameters"},
    "fpo.sweeps": {"files", "parameters"},
    # The language-model loop: below it only the module's own rooms, and within it from the bottom up.
    "fpo.llm.settings": {"rules", "parameters"},
    "fpo.llm.prompts": {"parameters"},
    "fpo.llm.decoding": NOTHING,
    "fpo.llm.team": NOTHING,
    "fpo.llm.weights": llm("prompts"),
    "fpo.llm.labels": {"parameters"},
    "fpo.llm.reading": NOTHING,
    "fpo.llm.models": llm("reading settings weights"),
    "fpo.llm.head": {"steering", "parameters", *llm("models prompts")},
    "fpo.llm.oracles": {"parameters", *llm("labels models prompts settings")},
    "fpo.llm.workbench": {"parameters", "rules", *llm("decoding head models oracles prompts settings team weights")},
    "fpo.llm.candidates": {"rules", *llm("decoding head labels oracles prompts settings team workbench")},
    "fpo.llm.runs": {"files", *llm("candidates head models oracles settings team")},
    "fpo.llm.loop": {
        "parameters", "rules", *llm("candidates decoding head oracles runs settings team weights workbench")
    },
    "fpo.llm.together": {
        "files", "parameters", "rules", *llm("candidates decoding head loop runs settings workbench")
    },
    "fpo.llm.panels": llm("candidates decoding loop oracles prompts together workbench"),
    "fpo.llm.plan": {"parameters", "results", *llm("settings")},
    "fpo.llm.study": {
        "files", "parameters", "results", "rules",
        *llm("candidates panels plan runs settings together weights workbench")
    },
    "fpo.llm": llm("candidates loop models prompts runs settings weights workbench"),
    "fpo.llm.__main__": {"llm", "llm.settings", "parameters"},
    # Evaluation reads policies and answers, and knows nothing of the loop that trained them.
    "fpo.evaluation": NOTHING,
    "fpo.evaluation.questions": {"parameters", *llm("prompts")},
    "fpo.evaluation.answers": {
        "evaluation.questions", "files", "parameters", "results", *llm("decoding models prompts settings weights")
    },
    "fpo.evaluation.judges": {"files", "parameters", "results", *llm("head models prompts settings weights")},
    "fpo.evaluation.verdicts": {"stats"},
    "fpo.evaluation.endpoint": {"evaluation.verdicts", "parameters", *llm("labels")},
    "fpo.evaluation.capability": {"parameters", *llm("models")},
    # In somebody else's trainer.
    "fpo.trl.head": {"parameters", *llm("reading")},
    "fpo.trl.options": {"parameters", "rules"},
    "fpo.trl.full": {"parameters", "rules", "steering", "trl.head", *llm("reading")},
    "fpo.trl.rows": {"parameters", "trl.head", *llm("labels oracles")},
    "fpo.trl.steered": {
        "parameters", "rules", "trl.full", "trl.head", "trl.options", "trl.rows", *llm("decoding head labels")
    },
    "fpo.trl.callbacks": {"files", "parameters", "trl.full", "trl.options", "trl.steered", *llm("head loop")},
    "fpo.trl": {"trl.callbacks", "trl.full", "trl.head", "trl.steered"},
}  # fmt: skip


def modules():
    """Every module of the package, by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("fpo", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path, known):
    """The package's modules that a file imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & known
            # `from fpo import files` imports files; `from fpo.files import load` too.
            found |= parts or {node.module}
    return {name for name in found if name in known and name != "fpo"}


MODULES = modules()


def test_the_table_names_every_room_and_no_other():
    assert set(TABLE) == set(MODULES)


@pytest.mark.parametrize("name", TABLE)
def test_a_room_imports_what_the_table_allows(name):
    allowed = {f"fpo.{room}" for room in TABLE[name]}
    assert imported(MODULES[name], set(MODULES)) <= allowed


def test_the_table_has_no_circle():
    below = {name: {f"fpo.{room}" for room in rooms} for name, rooms in TABLE.items()}
    while below:
        free = [name for name, rooms in below.items() if not rooms & set(below)]
        assert free, f"a circle among {sorted(below)}"
        for name in free:
            del below[name]


def reached(name):
    """Every room that one imports, itself or through another."""
    found, waiting = set(), [name]
    while waiting:
        found.add(room := waiting.pop())
        waiting += [below for each in TABLE[room] if (below := f"fpo.{each}") not in found]
    return found


@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("fpo.evaluation")])
def test_evaluation_never_reaches_the_loop(name):
    """Nor what plays it. Who trains does: what follows imports would see it."""
    assert not reached(name) & {"fpo.llm.loop", "fpo.llm.together", "fpo.llm.study", "fpo.trl"}
    assert "fpo.llm.loop" in reached("fpo.llm.study") & reached("fpo.trl")


def test_no_file_is_longer_than_400_lines_but_the_neural_game():
    long = {}
    for folder in (PACKAGE, PACKAGE.parent / "book"):
        for path in folder.rglob("*.py"):
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400:
                long[path.name] = lines
    # One file each: no wall through which a game's settings have to pass.
    assert set(long) <= {"neural.py"}, long


@pytest.mark.parametrize(
    "name", ["fpo.rules", "fpo.linear", "fpo.results", "fpo.monitor", "fpo.llm", "fpo.llm.__main__", "fpo.llm.plan"]
)
def test_light_rooms_stay_light(name):
    """Who asks for a rule's name, plays the linear game, writes results or is refused waits for no deep learning."""
    program = f"import sys, {name}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_torch_is_installed_here():
    """Or the test above would hold for nothing."""
    assert importlib.util.find_spec("torch") is not None
