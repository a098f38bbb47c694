"""Claims on the book's pages: tables, a chapter's card with its squares and key figure, and the switch of its code."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output
from tools.sphinx_book import CLAIM, RESULTS, Book

from fpo.claims import VERDICTS

import fpo_claims  # isort: skip  # beside the other extensions, which the lines above have put on the path


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


# Tables


def test_claims_table(book):
    page, warnings = book.build("```{claims-table}\n```")
    assert warnings == ""
    row = page.select("table.claims tbody tr")
    assert len(row) == 1
    cells = row[0].find_all("td")
    assert [cell.get_text(" ", strip=True) for cell in cells[1:]] == ["reproduced", "3 of 3 Rule: all", "A tiny game"]
    assert cells[0].select_one("span.math").get_text() == r"\(x > 0\)"
    assert cells[0].select_one(".claim-source").get_text() == "paper, Section 5"
    assert cells[1].select_one("span.verdict.verdict-reproduced")
    assert cells[3].a["href"] == "notebooks/tiny.html#claims-tiny"


def test_claims_table_in_its_own_chapter_has_no_link_to_it(book):
    notebook = nbformat.read(book.source / "notebooks" / "tiny.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("```{claims-table} tiny\n```"))
    nbformat.write(notebook, book.source / "notebooks" / "tiny.ipynb")
    _, warnings = book.build("Text.")
    page = book.page("notebooks/tiny")
    assert [head.get_text() for head in page.select("table.claims th")] == ["Claim", "Verdict", "What we got"]
    assert warnings == ""


@pytest.mark.parametrize("field", ["statement", "source", "value", "rule"])
def test_active_math_in_a_claim_is_a_warning(book, field):
    book.results(RESULTS | {"claims": [CLAIM | {field: r"Look: $\href{javascript:alert(1)}{x}$"}]})
    page, warnings = book.build("```{claims-table}\n```")
    assert "index.md:3: WARNING" in warnings and r"holds \href, which a claim may not" in warnings
    assert "javascript:" not in str(page.article)


@pytest.mark.parametrize(
    "math",
    [
        r"\text{\url{javascript:alert(1)}}",
        r"\class{x}{y}",
        r"\cssId{x}{y}",
        r"\style{color: red}{y}",
        r"\data{x=y}{z}",
        r"\mmlToken{mi}[href=javascript:alert(1)]{x}",
        r"\require{html}x",
        r"\href1",
    ],
)
def test_no_macro_of_a_claim_does_more_than_typeset(math):
    with pytest.raises(fpo_claims.Fault, match="makes links or HTML"):
        fpo_claims.prose(f"Look: ${math}$")


def test_macros_that_begin_like_active_ones_are_math(book):
    book.results(RESULTS | {"claims": [CLAIM | {"statement": r"It is $\classical + \dataset$"}]})
    assert book.build("```{claims-table}\n```")[1] == ""


def test_a_minus_is_no_hyphen():
    shown = "".join(
        node.astext() for node in fpo_claims.prose("-0.7 (-.2 to 1), above -delta; SmolLM2-135M, 1e-9, $-x$")
    )
    assert shown == "\N{MINUS SIGN}0.7 (\N{MINUS SIGN}.2 to 1), above \N{MINUS SIGN}delta; SmolLM2-135M, 1e-9, -x"


def test_html_in_a_claim_stays_text(book):
    text = "<script>alert(1)</script> <b>x</b> <a href=javascript:alert(1)>y</a> & \\"
    book.results(RESULTS | {"claims": [CLAIM | dict.fromkeys(("statement", "source", "value", "rule"), text)]})
    page, warnings = book.build("```{claims-table}\n```")
    assert warnings == ""
    row = page.select_one("table.claims tbody tr")
    assert [cell.get_text() for cell in row.select("td p:not(:has(.verdict, a))")] == [text] * 3 + [f"Rule: {text}"]
    assert not row.select("script, b, a[href^=javascript]")


def test_claims_table_warns_of_a_chapter_without_its_label(book):
    notebook = book.source / "notebooks" / "tiny.ipynb"
    notebook.write_text(notebook.read_text().replace("(claims-tiny)=\\n", ""))
    _, warnings = book.build("```{claims-table}\n```")
    assert "undefined label: 'claims-tiny'" in warnings


CERTAIN = CLAIM | {"id": "tiny-theorem", "statement": "It is a theorem", "verdict": "new", "certain": True}


@pytest.mark.parametrize("directive", ["{claims-table}", "{claims-table} tiny"])
def test_certain_claims_stand_apart(book, directive):
    """Old results files do not say that a claim is certain: none of theirs is."""
    book.results(RESULTS | {"claims": [CERTAIN, CLAIM, CLAIM | {"id": "tiny-other", "certain": False}]})
    page, warnings = book.build(f"```{directive}\n```")
    assert warnings == ""
    rows = [[row["id"] for row in table.select("tbody tr")] for table in page.select("table.claims")]
    assert rows == [["claim-tiny-grows", "claim-tiny-other"], ["claim-tiny-theorem"]]
    head = page.select_one("p.rubric")
    assert head.get_text() == fpo_claims.CERTAIN and "theorems and checks of code" in head.get_text()
    assert head.find_next("table") is page.select_one("table.claims.certain")


def test_a_chapter_of_certain_claims_only(book):
    book.results(RESULTS | {"claims": [CERTAIN]})
    page, warnings = book.build("```{claims-table}\n```")
    assert warnings == "" and len(page.select("table.claims")) == 1 and page.select("table.certain")


# Cards

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CARD = """# A tiny game

:::{summary} tiny
:figure: A-Dot

**Question.** Does it grow by $x$? {result}`tiny/share|.0%`
:::
"""
END = "(claims-tiny)=\n## Claims\n\n```{claims-table} tiny\n```"


def drawn(alt="A dot", name="a-dot", **mystnb):
    """A method cell with a figure."""
    given = {"image": {"alt": alt}, "figure": {"caption": "A dot.", "name": name}, **mystnb}
    output = new_output("display_data", {"image/png": DOT, "text/plain": "<Figure>"})
    return new_code_cell("draw()", metadata={"tags": ["hide-input"], "mystnb": given}, outputs=[output])


def test_a_card_shows_its_text_its_key_figure_and_a_square_for_each_claim(book):
    claims = [CLAIM | {"id": f"tiny-{i}", "verdict": verdict} for i, verdict in enumerate(VERDICTS)]
    book.results(RESULTS | {"claims": [*claims, CERTAIN]})
    book.chapter(CARD, drawn(), END)
    assert book.build("Text.")[1] == ""
    page = book.page("notebooks/tiny")
    card = page.select_one(".summary-card")
    assert card.p.get_text() == r"Question. Does it grow by \(x\)? 35%"
    assert card["role"] == "region" and card["aria-label"] == "Summary"
    key, figure = card.select_one(".key-figure a"), page.select_one("figure")
    assert key["href"] == f"#{figure['id']}" == "#a-dot"
    assert key.img["src"] == figure.img["src"] and key.img["alt"] == "A dot"
    empirical, certain = ([*squares.select("a")] for squares in card.select("ul.squares"))
    assert [square["href"] for square in empirical] == [f"#claim-tiny-{i}" for i in range(len(VERDICTS))]
    for square, verdict in zip(empirical, VERDICTS, strict=True):
        assert f"verdict-{verdict.replace(' ', '-')}" in square["class"]
        assert square.select_one(".visually-hidden").get_text() == square["title"] == f"{verdict}: It grows: x > 0"
    marks = [square.select_one(".square-mark").get_text() for square in empirical]
    assert len(set(marks)) == len(VERDICTS) and all(len(mark) == 1 for mark in marks)
    assert [square["href"] for square in certain] == ["#claim-tiny-theorem"]
    assert all(page.find(id=square["href"][1:]) for square in (*empirical, *certain))
    told = [head.get_text() for head in card.select(".squares-head")]
    assert told[0] == "Verdicts: " + ", ".join(f"{mark} 1 {v}" for mark, v in zip(marks, VERDICTS, strict=True))
    assert told[1] == f"Certain: {marks[3]} 1 new"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((CARD, END), "no figure of this page is named 'a-dot'"),
        ((CARD, drawn(name="another"), END), "no figure of this page is named 'a-dot'"),
        ((CARD.replace(":figure: A-Dot", ""), drawn(), END), "the option figure is missing"),
        ((CARD.replace("summary} tiny", "summary} other"), drawn(), END), "no results file"),
        ((CARD, drawn(), "(claims-tiny)=\n## Claims"), "no claims table of this page has a row 'claim-tiny-grows'"),
        ((CARD, drawn(alt=" "), END), "image without alt text"),
    ],
)
def test_fault_of_a_card_is_a_warning(book, cells, message):
    book.chapter(*cells)
    _, warnings = book.build("Text.")
    assert message in warnings and "tiny.ipynb" in warnings


@pytest.mark.parametrize(
    ("claims", "message"), [([], "has no claims"), ([CLAIM | {"verdict": "maybe"}], "'maybe' is none of")]
)
def test_a_card_without_good_claims_is_a_warning(book, claims, message):
    book.results(RESULTS | {"claims": claims})
    book.chapter(CARD, drawn(), "## The end")
    assert message in book.build("Text.")[1]


# Kinds of cells


def test_a_method_goes_by_its_name_and_bookkeeping_is_not_on_the_page(book):
    named = {"code_prompt_show": "Code: draw <a dot>"}
    book.chapter(
        "# Title",
        new_code_cell("idea = 1"),
        drawn(**named),
        new_code_cell("print(2)", metadata={"tags": ["remove-cell"]}, outputs=[new_output("stream", text="kept\n")]),
    )
    assert book.build("Text.")[1] == ""
    page = book.page("notebooks/tiny")
    assert [cell.get_text().strip() for cell in page.select(".cell_input")] == ["idea = 1", "draw()"]
    (fold,) = page.select("details.hide")
    assert [p.get_text() for p in fold.summary.select("p")] == ["Code: draw <a dot>"] * 2  # closed and open
    assert "aria-label" not in fold.summary.attrs and not fold.has_attr("open")
    assert "kept" not in page.get_text()
