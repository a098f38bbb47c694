"""Every documented command runs as it is written, shortened by parameters; those that cannot say why.

The make targets run in a tiny book, papermill and fpo.llm with few steps. A new command needs a rule below.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tools import pages, tiny_book

from fpo.llm.models import Policy
from fpo.llm.settings import Settings, settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
# What is not run here, by how it begins, and why.
NOT_RUN = {
    "make test": "it runs these very tests",
    "make portable": "it runs the other tests",
    "make weight": "it measures times; tests/test_weight.py checks what it says of bytes",
    "make bench": "it takes long; tests/test_benchmarks.py checks what it says",
    "make trl": "it installs TRL; a step of the workflows runs it",
    "make capability": "it installs lm-evaluation-harness; a step of the weekly workflow runs it",
    "make lock": "it asks a package index what is new",
    "conda ": "tests/test_repository.py compares environment.yml with the Makefile",
    "sh postBuild": "tests/test_repository.py runs it, with a pip that only writes down what it is told",
    ".venv/bin/python -m pip install ": "it changes the environment",
    ".venv/bin/python -m pre_commit ": "it changes the checkout's hooks",
}
# Targets that run in a tiny book, with what they leave there.
MAKE = {
    "help": "Makefile",
    "book": "_build/book/html/index.html",
    "html": "_build/html/html/index.html",
    "pdf": "_build/alignment-collapse.pdf",
    "zip": "_build/alignment-collapse.zip",
    "refresh": "notebooks/results/linear.json",
    "edition": "my-edition/html/index.html",
    "clean": "Makefile",
}
# What Python is told to run.
MODULES = ("m papermill", "m fpo.llm", "m fpo.llm.study", "m fpo.evaluation.answers", "c")
# Parameters that shorten the commands that name a file.
SHORTER = {
    "notebooks/linear.ipynb": {"steps": 20},
    "neural_64_seeds.yaml": {
        "seeds": [0, 1], "outer_steps": 6, "inner_steps": 2, "checkpoints": "", "results_path": "",
    },
    "smollm2_study.yaml": {
        "judged": 4, "steps": 2, "window": 1, "candidates": 2, "max_new_tokens": 6, "threads": 1, "folder": "",
        "results_path": "",
    },
}  # fmt: skip


def blocks(language):
    """Fenced blocks of a language with where they stand."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [
        pytest.param(match[1], id=f"{path.name}-{i}")
        for path in DOCUMENTS
        for i, match in enumerate(pattern.finditer(path.read_text(encoding="utf-8")))
    ]


def split(block):
    """The commands of a bash block without their comments; a text in quotes may run over several lines."""
    lines = re.findall(r'^(?:[^"\n]|"[^"]*")+', block, re.M)
    return [part.strip() for line in lines for part in re.split(r"\s{2,}#|^#", line)[0].split(" && ") if part.strip()]


def commands():
    """Every documented command once: those of bash blocks, and `make target` within a line."""
    found = [command for block in blocks("bash") for command in split(block.values[0])]
    for path in DOCUMENTS:
        found += re.findall(r"`(make [a-z]+)`", path.read_text(encoding="utf-8"))
    return list(dict.fromkeys(found))


def is_run(command):
    return not command.startswith(tuple(NOT_RUN))


def chosen(start, priced=False):
    """Parameters for pytest: the commands to be run that start with this; those that would cost money are apart."""
    found = [command for command in commands() if command.startswith(start) and is_run(command)]
    found = [command for command in found if ("notebooks/truthfulqa.ipynb" in command) == priced]
    return [pytest.param(command, id=re.sub(r"\W+", "-", command)[:80]) for command in found]


def execute(arguments, folder, **variables):
    # make tells by these whether it runs inside another one, as it does in `make test`.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CALLER")}
    environment |= variables
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, encoding="utf8", timeout=1800)


def run(arguments, folder):
    done = execute(arguments, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def without_rule(found):
    """Commands for which nothing above or below says how they are run, or why not."""
    known = tuple(f".venv/bin/python -{how} " for how in MODULES)
    return [
        command
        for command in found
        if is_run(command)
        and not command.startswith(known)
        and not (command.startswith("make ") and command.split()[1] in (*MAKE, "lint"))
    ]


def test_every_command_has_a_rule():
    assert without_rule(commands()) == []
    unused = [start for start in NOT_RUN if not any(command.startswith(start) for command in commands())]
    assert unused == [], "no document names it any more"
    assert len(blocks("python")) >= 2 and len(chosen(".venv/bin/python")) >= 4 and len(chosen("make")) >= 4


def test_a_command_without_a_rule_is_seen():
    block = """make book   # sets up .venv
make new A=b && cd x
# a comment
.venv/bin/python -m fpo.new
.venv/bin/python -c "a = 1 # one
print(a)"
"""
    assert split(block)[:3] == ["make book", "make new A=b", "cd x"]
    assert split(block)[-1] == '.venv/bin/python -c "a = 1 # one\nprint(a)"'
    assert without_rule(split(block)) == ["make new A=b", "cd x", ".venv/bin/python -m fpo.new"]


@pytest.mark.parametrize("source", blocks("python"))
def test_python_snippet(source, tmp_path):
    run([sys.executable, "-c", source], tmp_path)
    if "after a restart" in source:
        run([sys.executable, "-c", source], tmp_path)


def fits(source):
    """How many calls of what is imported from fpo there are in a text that is not run, all with arguments they take."""
    tree, known, made, calls = ast.parse(source), {}, {}, 0
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("fpo")]:
        known |= {each.name: getattr(importlib.import_module(node.module), each.name) for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made |= {node.targets[0].id: known.get(getattr(node.value.func, "id", None))}
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in known:
            given = {each.arg for each in node.keywords}
            inspect.signature(known[node.func.id]).bind(*node.args, **dict.fromkeys(given))
            assert node.func.id != "settings" or given <= set(Settings.model_fields)
            calls += 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and made.get(getattr(node.value, "id", None)):
            assert hasattr(made[node.value.id], node.attr)
    return calls


def test_starts_that_need_a_model_call_what_there_is():
    starts = [block.values[0] for block in blocks("{code-block} python")]
    assert [fits(start) for start in starts] == [7, 2]
    faults = [("labels=", "label="), (".probe", ".prob"), ("Monitor(path", "Monitor(paths"), ('(rm, "leverage",', "(")]
    for old, new in faults:
        assert old in starts[0]
        with pytest.raises((TypeError, AssertionError)):
            fits(starts[0].replace(old, new))
    with pytest.raises(AssertionError):
        fits(starts[1].replace("steps", "step"))


@pytest.mark.parametrize("command", chosen(".venv/bin/python"))
def test_python_command(command, tmp_path, tiny):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    _, *arguments = shlex.split(command)
    if " fpo.llm " in command:
        arguments += [part for name in ("policy", "reward_model") for part in ("--set", f"{name}={tiny[name]}")]
    if "--again" in arguments:  # of a stored run's length and models, four steps of tiny ones
        name = arguments[arguments.index("--again") + 1]
        stored = json.loads((ROOT / "notebooks" / "runs" / "llm_study" / f"{name}.json").read_text(encoding="utf8"))
        stored["settings"] |= {"steps": 4, **{key: tiny[key] for key in ("policy", "reward_model")}}
        (tmp_path / f"{name}.json").write_text(json.dumps(stored | {"winners": stored["winners"][:4]}))
        arguments[arguments.index("notebooks/runs/llm_study")] = str(tmp_path)
    elif "fpo.evaluation.answers" in command:
        Policy(settings(**tiny)).save_pretrained(tmp_path / arguments[arguments.index("--adapter") + 1])
        arguments += ["--tokens", "4"]
    elif "fpo.llm.study" in command:
        arguments += ["--only", "nothing"]  # what it would play and what that costs; tests/test_llm_study.py plays
    for name, parameters in SHORTER.items():
        if name in command:
            file = tmp_path / f"shorter-{Path(name).stem}.yaml"
            if name == "smollm2_study.yaml":
                study = yaml.safe_load((ROOT / "notebooks" / "parameters" / name).read_text(encoding="utf8"))
                models = [f"{key}: {tiny[key]}" for key in ("policy", "reward_model")]
                parameters = parameters | {"overrides": study["overrides"] + models}
            file.write_text(yaml.safe_dump(parameters))
            arguments += ["-f", str(file)]
    run([sys.executable, *arguments], tmp_path)


@pytest.mark.parametrize("command", chosen(".venv/bin/python", priced=True))
def test_what_would_cost_money_first_says_how_much(command, tmp_path):
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    _, *arguments = shlex.split(command)
    # No server answers at the documented addresses from here: nothing may be asked of it.
    done = execute([sys.executable, *arguments], tmp_path, OPENAI_API_KEY="none", TOGETHER_API_KEY="none")
    assert done.returncode != 0
    assert re.search(r"^ParameterError: not agreed to: \d+ calls", done.stderr, re.M), done.stderr[-2000:]


def test_a_refused_parameter_is_what_the_text_says(tmp_path):
    (message,) = [block.values[0] for block in blocks("text") if block.values[0].startswith("ParameterError")]
    (command,) = [command for command in commands() if "papermill" in command and " -p gamma 0.05" in command]
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "results.json").write_text("earlier")
    _, *arguments = shlex.split(command.replace("0.05", "-1"))
    done = execute([sys.executable, *arguments, "-p", "results_path", "results.json"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith(message.rstrip())
    assert (tmp_path / "results.json").read_text() == "earlier"
    assert "gamma = -1: must be" in (tmp_path / "out.ipynb").read_text(encoding="utf8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tiny book with the Makefile, whose one notebook takes what the documented edition sets; its pages serve all."""
    parameters = "steps = 2\nseeds = []\ngradient = ''"
    root = tiny_book.make(
        tmp_path_factory.mktemp("documents") / "a tiny book", names=("linear",), parameters=parameters
    )
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "notebooks" / "parameters", root / "notebooks" / "parameters", dirs_exist_ok=True)
    claim = {"id": "x", "statement": "x", "source": "us", "value": "1", "verdict": "new", "rule": ""}
    results = {"results": {"total": 6}, "claims": [claim], "parameters": {}}
    (root / "notebooks" / "results" / "linear.json").write_text(json.dumps(results))
    return root


@pytest.mark.parametrize("command", chosen("make"))
def test_make_command(command, tree):
    target = command.split()[1]
    folder = ROOT if target == "lint" else tree
    arguments = shlex.split(command)
    if not (ROOT / ".venv" / ".test").exists() or (target == "pdf" and pages.find_browser() is None):
        arguments.append("--dry-run")
    elif folder == tree and not (tree / ".venv").exists():  # `make clean` takes it away
        (tree / ".venv").symlink_to(ROOT / ".venv")
    # The environment is taken as it is.
    run([*arguments, "--old-file=.venv/.test", "--old-file=.venv/.book"], folder)
    if "--dry-run" not in arguments and folder == tree:
        assert (tree / MAKE[target]).is_file()


@pytest.mark.parametrize("target", sorted(start.split()[1] for start in NOT_RUN if start.startswith("make ")))
def test_make_plans_what_is_not_run(target):
    assert run(["make", "--dry-run", target], ROOT)
