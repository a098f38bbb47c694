"""The driver behind make book, html, refresh and edition, on a tiny book in a path with blanks."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from unittest.mock import ANY

import nbformat
import pytest
from bs4 import BeautifulSoup
from tools import tiny_book


@pytest.fixture
def tree(tmp_path):
    return tiny_book.make(tmp_path / "a tiny {book}")


@pytest.fixture
def build(tree, monkeypatch):
    """The tree's own book/build.py as a module; `execute` and `render` are those beside it."""
    monkeypatch.syspath_prepend(str(tree / "book"))
    for name in ("execute", "render"):  # this tree's, and gone with it
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    for name in ("PYTHONPATH", "TQDM_DISABLE"):  # main() sets them: have them restored
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CALLER", str(tree.parent))
    spec = importlib.util.spec_from_file_location("tiny_build", tree / "book" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def execute(build):
    return sys.modules["execute"]


@pytest.fixture
def render(build):
    return sys.modules["render"]


@pytest.fixture
def unrendered(build, render, monkeypatch):
    """The driver with an instant renderer: what is looked at is the execution."""
    monkeypatch.setattr(render, "render", lambda source, out: out.mkdir(parents=True, exist_ok=True))
    return build


@pytest.fixture
def instant(unrendered, monkeypatch):
    """The driver without any execution either: what is looked at is what lies where."""
    for name in ("check_values", "execute_or_reuse", "execute", "draw_headline"):
        monkeypatch.setattr(unrendered, name, lambda *_: None)
    return unrendered


def snapshot(tree):
    """Digest of every source file."""
    files = [file for file in sorted(tree.rglob("*")) if file.is_file() and "_build" not in file.parts]
    return {
        str(file.relative_to(tree)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if "__pycache__" not in file.parts
    }


def edition(build, tree, text, out="out"):
    """Ask for an edition with a parameters file of this text; the exit status."""
    (tree.parent / "my.yaml").write_text(text)
    return build.main(["edition", "--parameters", "my.yaml", "--out", out])


def test_names_follow_the_reading_order(execute):
    assert execute.notebook_names() == ["first", "second"]


# Rendering


def test_html_renders_a_good_book_and_refuses_a_missing_number(build, tree, capfd):
    assert build.main(["refresh"]) == 0
    assert build.main(["html"]) == 0
    first_page = tree / "_build" / "html" / "html" / "index.html"
    assert f"Open {first_page.as_uri()}" in capfd.readouterr().out
    assert "a%20tiny%20%7Bbook%7D" in first_page.as_uri()
    page = (tree / "_build" / "html" / "html" / "book" / "index.html").read_text()
    assert '<span class="result">6</span>' in page
    index = tree / "book" / "index.md"
    index.write_text(index.read_text().replace("total|d", "totl|d"))
    assert build.main(["html"]) == 1
    assert not first_page.exists()
    assert "no 'totl'" in capfd.readouterr().err


@pytest.fixture
def counted(instant, render, monkeypatch):
    """The driver with a renderer that writes one page and counts; `counted.status` is what it returns."""

    def write(source, out):
        instant.renderings += 1
        shutil.rmtree(out, ignore_errors=True)
        if not instant.status:
            out.mkdir(parents=True)
            (out / "index.html").write_text("page")
        return instant.status

    instant.renderings = instant.status = 0
    monkeypatch.setattr(render, "render", write)
    monkeypatch.setattr(render, "packages", lambda: {"sphinx": "1"})
    return instant


def changed(file):
    """Change a source in a way that stays valid."""
    return lambda tree: (tree / file).write_bytes((tree / file).read_bytes() + b"\n")


CHANGES = {
    **{
        file: changed(file)
        for file in (
            "_config.yml", "_toc.yml", "CHANGELOG.md", "constraints.txt", "book/index.md", "book/build.py",
            "book/render.py", "book/_static/book.css", "book/_ext/fpo_book.py", "notebooks/first.ipynb",
        )
    },
    "a new page": lambda tree: (tree / "book" / "new.md").write_text("# New\n"),
    "new results": lambda tree: (tree / "notebooks" / "results" / "first.json").write_text("{}"),
    "a page that is gone": lambda tree: (tree / "_build" / "html" / "html" / "index.html").unlink(),
    "a page that was edited": lambda tree: (tree / "_build" / "html" / "html" / "index.html").write_text("other"),
    "a mark cut short": lambda tree: (tree / "_build" / "html" / "rendered").write_text("0"),
}  # fmt: skip


def test_pages_are_rendered_again_only_when_something_changed(counted, render, tree, capsys, monkeypatch):
    def renders():
        before = counted.renderings
        assert counted.main(["html"]) == 0
        reused = "pages: unchanged, reused" in capsys.readouterr().out
        assert reused == (counted.renderings == before)
        return not reused

    assert renders() and not renders()
    for what, change in CHANGES.items():
        change(tree)
        assert renders(), what
    monkeypatch.setattr(render, "packages", lambda: {"sphinx": "2"})
    assert renders()
    monkeypatch.setattr(render.sys, "version", "another Python")
    assert renders() and not renders()


def test_pages_that_did_not_render_are_never_reused(counted, tree):
    assert counted.main(["book"]) == 0
    changed("book/index.md")(tree)
    counted.status = 1
    assert counted.main(["book"]) == counted.main(["book"]) == 1
    assert counted.renderings == 3


# One build at a time

HOLD = """import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()"""
COMMANDS = (["book"], ["html"], ["refresh"], ["edition", "--parameters", "my.yaml", "--out", "out"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_a_second_build_says_that_it_waits_for_the_first(instant, tree, monkeypatch, command, end):
    (tree.parent / "my.yaml").write_text("first: {steps: 3}")
    (tree / "_build").mkdir()
    said = []
    hold = [sys.executable, "-c", HOLD, str(tree / "_build" / ".lock")]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:

        def say(text, **_):
            said.append(text)
            if "waiting" in text:
                assert not (tree / "_build" / command[0]).exists()
                first.kill() if end == "is killed" else first.stdin.close()

        def stop(folder):
            raise instant.Failed("it went on")

        assert first.stdout.readline() == "held\n"
        monkeypatch.setattr(instant, "print", say, raising=False)
        monkeypatch.setattr(instant, "stage", stop)
        assert instant.main(command) == 1
        first.stdin.close()
    assert said == [f"another build is running in {tree}: waiting for it to end (Ctrl-C gives up)", ANY]


def test_builds_that_follow_one_another_do_not_wait(instant, tree, capsys):
    for command in ("html", "book", "html"):
        assert instant.main([command]) == 0
    assert "another build" not in capsys.readouterr().out


# Reuse


def test_book_executes_again_only_what_changed(unrendered, tree, capsys):
    before = snapshot(tree)

    def notes():
        assert unrendered.main(["book"]) == 0
        output = capsys.readouterr().out
        stage = tree / "_build" / "book" / "source"
        return output, json.loads((stage / "notebooks" / "results" / "first.json").read_text())["results"]["total"]

    output, total = notes()
    assert "notebook 1 of 2: first\nfirst: executed" in output and total == 6
    output, total = notes()
    assert "notebook 2 of 2: second: unchanged, reused" in output and "executed" not in output and total == 6
    assert snapshot(tree) == before
    (tree / "fpo" / "__init__.py").write_text("FACTOR = 4\n")
    output, total = notes()
    assert "reused" not in output and total == 8


def test_failed_execution_is_reported_and_never_reused(unrendered, tree, capsys):
    (tree / "fpo" / "__init__.py").write_text("OTHER = 1\n")
    for _ in range(2):
        assert unrendered.main(["book"]) == 1
        captured = capsys.readouterr()
        assert "book: notebook first failed\n    AttributeError: module 'fpo' has no attribute 'FACTOR'" in captured.err
        assert "reused" not in captured.out
    assert not (tree / "_build" / "executed").exists()


@pytest.mark.parametrize(
    "file",
    ["fpo/__init__.py", "fpo/new.py", "notebooks/runs/run.csv", "notebooks/parameters/long.yaml", "constraints.txt"],
)
def test_reuse_key_depends_on_every_ingredient(execute, tree, file):
    before = execute.reuse_key("first")
    (tree / file).write_text("# other\n")
    assert execute.reuse_key("first") != before


def test_reuse_key_depends_on_cells_and_not_on_outputs(execute, tree):
    path = tree / "notebooks" / "first.ipynb"
    before = execute.reuse_key("first")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].execution_count = 7
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    nbformat.write(notebook, path)
    assert execute.reuse_key("first") == before
    notebook.cells[1].metadata["mystnb"] = {"figure": {"caption": "Other"}}
    nbformat.write(notebook, path)
    assert execute.reuse_key("first") != before
    notebook.cells[1].metadata.pop("mystnb")
    notebook.cells[0].source += " again"
    nbformat.write(notebook, path)
    assert execute.reuse_key("first") != before


def test_time_limit(unrendered, execute, tree, capsys, monkeypatch):
    monkeypatch.setattr(execute, "TIME_LIMIT", 1)
    path = tree / "notebooks" / "first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[4].source = "import time\ntime.sleep(60)"
    nbformat.write(notebook, path)
    assert unrendered.main(["book"]) == 1
    assert "notebook first failed (its limit is 1 s)" in capsys.readouterr().err


# Refresh


def test_refresh_is_deterministic_and_leaves_no_trace_of_the_machinery(unrendered, tree):
    original = nbformat.read(tree / "notebooks" / "first.ipynb", as_version=4)
    assert unrendered.main(["refresh"]) == 0
    once = snapshot(tree)
    assert unrendered.main(["refresh"]) == 0
    assert snapshot(tree) == once
    text = (tree / "notebooks" / "first.ipynb").read_text()
    for trace in ("papermill", "injected", "iopub", str(tree), "it/s"):
        assert trace not in text
    notebook = nbformat.reads(text, as_version=4)
    for cell, was in zip(notebook.cells, original.cells, strict=True):
        assert (cell.id, cell.source, cell.metadata) == (was.id, was.source, was.metadata)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, 7))
    assert [(output.name, output.text) for output in code[3].outputs] == [
        ("stdout", "step\nstep\n"),
        ("stderr", "warned\n"),
    ]
    assert code[4].outputs[0].execution_count == 5
    assert json.loads((tree / "notebooks" / "results" / "first.json").read_text())["results"] == {"total": 6}
    assert "<text>6</text>" in (tree / "book" / "_static" / "headline.svg").read_text()


def test_pieces_of_print_become_one_whatever_their_order(execute):
    out, err, shown = (
        nbformat.v4.new_output("stream", name=name, text="x\n") for name in ("stdout", "stderr", "stdout")
    )
    figure = nbformat.v4.new_output("display_data", data={"text/plain": "figure"})
    whole = execute.merge_streams([err, out, err, out, figure, shown])
    assert [(output.get("name"), output.get("text")) for output in whole] == [
        ("stdout", "x\nx\n"),
        ("stderr", "x\nx\n"),
        (None, None),
        ("stdout", "x\n"),
    ]


def test_refresh_updates_all_or_nothing(unrendered, tree, capsys):
    path = tree / "notebooks" / "second.ipynb"
    path.write_text(path.read_text().replace("steps * fpo", "1 / 0 * fpo"))
    before = snapshot(tree)
    assert unrendered.main(["refresh"]) == 1
    assert "refresh: notebook second failed\n    ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert snapshot(tree) == before


def test_refresh_refuses_paths_of_the_machine(unrendered, tree, capsys):
    path = tree / "notebooks" / "second.ipynb"
    path.write_text(path.read_text().replace("# nothing to see", "print(Path.cwd())"))
    before = snapshot(tree)
    assert unrendered.main(["refresh"]) == 1
    assert "notebooks/second.ipynb would carry a path of this machine" in capsys.readouterr().err
    assert snapshot(tree) == before


# Editions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frist: {steps: 3}", "unknown notebook 'frist': allowed are first, second, all, title"),
        ("first: {stepz: 3}", "first: unknown parameter 'stepz' = 3: allowed are steps"),
        ("all: {stepz: 3}", "all: unknown parameter 'stepz' = 3: allowed are steps"),
        ("first: {results_path: x}", "first: unknown parameter 'results_path' = 'x'"),
        ("first: 3", "first is 3: expected a mapping"),
        ("- first", "holds ['first']: expected a mapping"),
        ("", "holds None: expected a mapping"),
        ("title: Mine", "sets no parameter"),
        ("title: 3\nfirst: {steps: 3}", "title is 3: expected a text"),
        ("first: {steps: 3", "is not YAML"),
        ("first: {steps: 3}\nfirst: {steps: 4}", "'first' is given twice"),
        ("first: {steps: 3}\nsecond: {steps: -1}", "second: steps = -1: expected a positive whole number"),
        ("first: {steps: 2.0}", "first: steps = 2.0: expected a positive whole number"),
    ],
)
def test_bad_parameters_end_before_any_work(build, tree, capsys, text, message):
    before = snapshot(tree)
    assert edition(build, tree, text) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("edition: ")
    assert "Traceback" not in captured.err and captured.out == ""
    assert snapshot(tree) == before
    assert sorted(path.name for path in tree.parent.iterdir()) == [tree.name, "my.yaml"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "OUT is missing"),
        ("a tiny {book}", "among the book's sources"),
        ("a tiny {book}/notebooks/new", "among the book's sources"),
        ("a tiny {book}/_build", "among the book's sources"),
        ("my.yaml", "which is a file"),
        ("my.yaml/new", "no folder that can be written to"),
        (".", "which is not empty"),
    ],
)
def test_bad_folder_ends_before_any_work(build, tree, capsys, out, message):
    before = snapshot(tree)
    assert edition(build, tree, "first: {steps: 3}", out) == 2
    assert message in capsys.readouterr().err
    assert snapshot(tree) == before


def test_missing_parameters_file(build, capsys):
    assert build.main(["edition", "--parameters", "none.yaml", "--out", "out"]) == 2
    assert "PARAMETERS is 'none.yaml', which cannot be read: No such file" in capsys.readouterr().err
    assert build.main(["edition", "--parameters", "", "--out", "out"]) == 2
    assert "PARAMETERS is missing" in capsys.readouterr().err


def test_edition_is_marked_and_leaves_the_originals_alone(build, tree, capsys):
    before = snapshot(tree)
    title = """<script>alert(1)</script> "mine" & 'yours'"""
    text = f"all: {{steps: 3}}\nsecond: {{steps: 5}}\ntitle: {json.dumps(title)}"
    assert edition(build, tree, text, "an edition") == 0
    out = tree.parent / "an edition"
    assert f"Open {(out / 'html' / 'index.html').as_uri()}" in capsys.readouterr().out
    assert snapshot(tree) == before
    assert sorted(path.name for path in out.iterdir()) == ["edition.json", "html", "source"]
    pages = [page for page in (out / "html").rglob("*.html") if page.parent.name in ("book", "notebooks")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text()
        assert "Edition with other parameters: first: steps = 3; second: steps = 5. These are not the publ" in text
        soup = BeautifulSoup(text, "html.parser")
        assert soup.title.get_text().endswith(f" \N{EM DASH} {title}")
        assert soup.select_one(".logo__title").get_text() == title
        assert soup.select_one("meta[property='og:site_name']")["content"] == title
    for page in (out / "html").rglob("*.html"):
        soup = BeautifulSoup(page.read_text(), "html.parser")
        assert not [script for script in soup.find_all("script") if "alert(1)" in script.get_text()], page
    assert '<span class="result">9</span>' in (out / "html" / "book" / "index.html").read_text()
    notebook = nbformat.read(out / "source" / "notebooks" / "second.ipynb", as_version=4)
    assert notebook.cells[3].source == "# Parameters\nsteps = 5"
    assert notebook.cells[3].metadata.tags == ["injected-parameters"]
    record = json.loads((out / "edition.json").read_text())
    assert record["parameters"] == {"first": {"steps": 3}, "second": {"steps": 5}}
    assert record["sha256"]["notebooks/first.ipynb"] == before["notebooks/first.ipynb"]
    assert record["commit"] is None


def test_failing_edition_leaves_nothing_and_an_earlier_one_is_replaced_only_by_a_whole_one(unrendered, tree, capsys):
    assert edition(unrendered, tree, "first: {steps: 100}") == 1
    assert "edition: notebook first failed\n    AssertionError: too many steps" in capsys.readouterr().err
    assert sorted(path.name for path in tree.parent.iterdir()) == [tree.name, "my.yaml"]
    assert edition(unrendered, tree, "first: {steps: 4}") == 0
    first = (tree.parent / "out" / "edition.json").read_text()
    assert edition(unrendered, tree, "first: {steps: 100}") == 1
    assert (tree.parent / "out" / "edition.json").read_text() == first
    assert edition(unrendered, tree, "first: {steps: 5}") == 0
    assert (tree.parent / "out" / "edition.json").read_text() != first
    assert sorted(path.name for path in tree.parent.iterdir()) == [tree.name, "my.yaml", "out"]


def test_only_what_an_edition_wrote_is_ever_removed(instant, tree, capsys):
    out = tree.parent / "out"
    assert edition(instant, tree, "first: {steps: 4}") == 0
    written = json.loads((out / "edition.json").read_text())["files"]
    assert set(written) == {path for path in snapshot(out) if path != "edition.json"}
    config = out / "source" / "_config.yml"
    text = config.read_text()

    def refused(*names):
        before = snapshot(out)
        assert edition(instant, tree, "first: {steps: 5}") == 2
        assert f"which is not empty and holds what no edition wrote: {', '.join(names)}." in capsys.readouterr().err
        assert snapshot(out) == before

    (out / "notes.txt").write_text("mine")
    (out / "html" / "notes.txt").write_text("mine")
    config.write_text(text + "# mine\n")
    refused("html/notes.txt", "notes.txt", "source/_config.yml")
    (out / "source" / "z").write_text("mine")
    refused("html/notes.txt", "notes.txt", "source/_config.yml and 1 more")
    config.write_text(text)
    for name in ("notes.txt", "html/notes.txt", "source/z"):
        (out / name).unlink()
    assert edition(instant, tree, "first: {steps: 5}") == 0
    assert json.loads((out / "edition.json").read_text())["parameters"]["first"] == {"steps": 5}


@pytest.mark.parametrize("text", ["mine", "[]", "{}", '{"files": ["notes.txt"]}', '{"title": "mine"}', "\udcff"])
def test_a_readers_own_edition_json_is_kept(instant, tree, capsys, text):
    out = tree.parent / "out"
    out.mkdir()
    (out / "edition.json").write_text(text, encoding="utf8", errors="surrogateescape")
    before = snapshot(out)
    assert edition(instant, tree, "first: {steps: 5}") == 2
    assert "holds what no edition wrote: edition.json." in capsys.readouterr().err
    assert snapshot(out) == before


def test_a_link_in_an_edition_is_not_followed(instant, tree, capsys):
    out, elsewhere = tree.parent / "out", tree.parent / "elsewhere"
    assert edition(instant, tree, "first: {steps: 4}") == 0
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    try:
        (out / "html" / "link").symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("no links may be made here")
    assert edition(instant, tree, "first: {steps: 5}") == 2
    assert "no edition wrote: html/link." in capsys.readouterr().err
    assert (elsewhere / "mine").is_file() and (out / "html" / "link").is_symlink()


def test_what_a_reader_puts_there_while_the_edition_is_made_is_kept(instant, tree, capsys, monkeypatch):
    out = tree.parent / "out"

    def put(source):
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    monkeypatch.setattr(instant, "draw_headline", put)
    assert edition(instant, tree, "first: {steps: 4}") == 2
    assert "no edition wrote: notes.txt." in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tree.parent.iterdir()) == [tree.name, "my.yaml", "out"]
