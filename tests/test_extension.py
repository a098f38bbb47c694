"""The book's own role, directives and mending: what they show, and that every fault is a warning."""

import json

import pytest
from bs4 import BeautifulSoup
from tools.sphinx_book import CLAIM, RESULTS, Book

import fpo_pages  # isort: skip  # beside the other extensions, which the line above has put on the path


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def test_results_as_text(book):
    roles = {
        "tiny/gap|.2f": "−1.24",
        "tiny/gap": "−1.236",
        "tiny/share|.0%": "35%",
        "tiny/seeds.1|d": "5",
        "tiny/none|.2f": "not available",
        "tiny/name|s": "relaxed",
        "tiny/parameters:steps|d": "300",
        "tiny/claims:tiny-grows.verdict|s": "reproduced",
    }
    table = "\n\n| a |\n| --- |\n| {result}`tiny/gap\\|.1f` |\n"
    page, warnings = book.build("\n\n".join(f"{{result}}`{role}`" for role in roles) + table)
    assert warnings == ""
    assert [span.get_text() for span in page.select("span.result")] == [*roles.values(), "−1.2"]


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("tiny/gapp|.2f", "no 'gapp', only flag, gap"),
        ("tiny/seeds.2", "no '2', only 2 entries"),
        ("tiny/gap.more", "no 'more', it is -1.236"),
        ("none/gap", "no results file notebooks/results/none.json"),
        ("tiny/gap|.2q", "cannot be shown as '.2q'"),
        ("tiny/name|.2f", "cannot be shown as '.2f'"),
        ("tiny/name", "cannot be shown as 'g'"),
        ("tiny/seeds", "a list is neither"),
        ("tiny/flag", "a bool is neither"),
        ("tiny/claims:other.verdict|s", "no 'other', only tiny-grows"),
        ("tiny/result:gap", "unknown section 'result'"),
        ("gap", "expected notebook/path|format"),
    ],
)
def test_fault_of_a_role_is_a_warning_at_its_line(book, role, message):
    _, warnings = book.build(f"{{result}}`{role}`")
    assert message in warnings
    assert "index.md:3: WARNING" in warnings


@pytest.mark.parametrize("content", ["{", '{"results": {"gap": NaN}}', "[1]"])
def test_broken_results_file_is_a_warning(book, content):
    book.results(content)
    _, warnings = book.build("{result}`tiny/gap`")
    assert "tiny.json" in warnings


def test_changed_results_reach_the_page_of_an_incremental_build(book):
    page, _ = book.build("{result}`tiny/gap|.1f`\n\n```{environment-table} tiny\n```")
    digest = page.select("table.environment td")[-2].get_text(strip=True)
    book.results(RESULTS | {"results": {"gap": 2}})
    page, warnings = book.build()
    assert page.select_one("span.result").get_text() == "2.0"
    assert page.select("table.environment td")[-2].get_text(strip=True) != digest
    assert warnings == ""


@pytest.mark.parametrize(
    ("directive", "results", "message"),
    [
        ("{claims-table} other", RESULTS, "no results file"),
        (
            "{claims-table}",
            RESULTS | {"claims": [CLAIM | {"verdict": "maybe"}]},
            "'maybe' is none of reproduced, partly",
        ),
        ("{claims-table}", RESULTS | {"claims": [{"id": "x", "verdict": "new"}]}, "no 'statement'"),
        ("{claims-table}", RESULTS | {"claims": []}, "no claim to show"),
        ("{environment-table} other", RESULTS, "no results file"),
        ("{environment-table} tiny", RESULTS | {"environment": {}}, "has no environment"),
    ],
)
def test_fault_of_a_table_is_a_warning(book, directive, results, message):
    book.results(results)
    _, warnings = book.build(f"```{directive}\n```")
    assert message in warnings
    assert "index.md:3: WARNING" in warnings


def test_environment_table(book):
    other = {"python": "3.11", "host": "a laptop"}
    (book.source / "notebooks" / "results" / "other.json").write_text(json.dumps({"environment": other}))
    page, _ = book.build("```{environment-table} tiny other\n```")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in page.select("tbody tr")]
    assert rows[:4] == [
        ["host", "not available", "tiny"],
        ["host", "a laptop", "other"],
        ["packages", "numpy 2.4, scipy 1.17", "tiny"],
        ["python", "3.11", "all"],
    ]
    assert [(len(digest), name) for _, digest, name in rows[4:]] == [(12, "tiny"), (12, "other")]


def test_a_table_of_sentences_knows_its_columns_in_every_cell():
    def mended(last, heads=("A", "B", '<span class="math">x</span>')):
        head = "".join(f"<th>{name}</th>" for name in heads)
        row = "".join(f"<td>{text}</td>" for text in ("1", "2", last)[: len(heads)])
        table = f"<table><thead><tr>{head}</tr></thead><tbody><tr>{row}</tr></tbody></table>"
        soup = BeautifulSoup(f"<article><h2>T</h2>{table}</article>", "html.parser")
        fpo_pages.mend(soup)
        return soup.table.get("class"), [cell.get("data-head") for cell in soup.select("td")]

    assert mended("a long sentence " * 3) == (["stacks"], ["A", "B", None])
    assert mended("3") == (None, [None, None, None])
    assert mended("", ("A", "a long sentence " * 3)) == (None, [None, None])


def test_no_line_begins_with_what_closes_the_one_before():
    soup = BeautifulSoup(
        '<article><p><span class="math">x</span>), and <span class="math">y</span> z</p></article>', "html.parser"
    )
    fpo_pages.mend(soup)
    assert [each.get_text() for each in soup.select(".unbroken")] == ["x),"]
    assert soup.get_text() == "x), and y z"


def test_image_without_alt_text_is_a_warning(book):
    (book.source / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert "image without alt text: a.svg" in book.build("```{image} a.svg\n```")[1]
    assert book.build("```{image} a.svg\n:alt: Nothing\n```")[1] == ""


def test_mending_names_what_a_screen_reader_meets():
    soup = BeautifulSoup(
        """<ul><li><a>Part</a><details><summary><i class="fa-solid fa-x"></i></summary></details></li></ul>
        <input type="search"><button title="Go"></button><article><h2>Head<a>#</a></h2>
        <ul><li><input type="checkbox"> task</li></ul>
        <table><thead><tr><th></th></tr></thead><tr><td>1</td></tr></table>
        <p class="rubric">Certain</p><div><table><tr><td>2</td></tr></table></div>
        <div class="math"><span class="eqno">(1.2)<a>#</a></span></div><div role="doc-biblioentry"></div></article>""",
        "html.parser",
    )
    fpo_pages.mend(soup)
    assert soup.summary["aria-label"] == "Chapters of Part"
    assert soup.i["aria-hidden"] == "true"
    assert soup.select_one("input[type=search]")["aria-label"] == "Search this book"
    assert soup.button["aria-label"] == "Go"
    assert soup.select_one("input[type=checkbox]")["aria-label"] == "task"
    assert soup.table.parent.attrs == {
        "class": "scrolling",
        "tabindex": "0",
        "role": "group",
        "aria-label": "Table: Head",
    }
    assert soup.thead is None
    assert [box["aria-label"] for box in soup.select(".scrolling")] == ["Table: Head", "Table: Certain"]
    assert soup.select_one("div.math")["aria-label"] == "Equation (1.2)"
    assert soup.select_one("[role=listitem]") is not None
