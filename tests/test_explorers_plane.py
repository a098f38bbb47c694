"""The explorer of the study's runs in a browser: every run can be read, by list, tap and address."""

from __future__ import annotations

import re

import numpy as np
from tools.explorers import ROOT, field, query_of, stored

BUDGET = 30_000  # bytes of a file of texts


def run_names():
    folder = stored("results/llm_study")["parameters"]["runs"]
    paths = (ROOT / "notebooks" / "runs" / folder).glob("*.json")
    return folder, sorted(path.stem for path in paths if "@" not in path.stem)  # tuning has no held-out texts


def lines(tab):
    """What stands beside each look: its numbers and its text."""
    return [
        (block.locator(".numbers").inner_text(), block.locator(".text").inner_text())
        for block in tab.locator(".look").all()
    ]


def expected(run, question):
    """The same from the stored run."""
    found = []
    for look in run["watched"]:
        own = look["heldout"]
        name = list(own["texts"])[question]
        place = question * (len(own["utility"]) // len(own["texts"]))
        told = (
            f"KL {own['kl']:.1f}, U {np.mean(own['utility']):.2f}, RM {own['reward']:.2f}; "
            f"this text: U {own['utility'][place]:.2f}"
        )
        found.append((told.replace("-", "\N{MINUS SIGN}"), own["texts"][name]))
    return found


def alike(one, other):
    """Equal, up to the last digit where two roundings met."""
    numbers = [
        [float(each) for told, _ in looks for each in re.findall(r"-?[\d.]+\d", told.replace("\N{MINUS SIGN}", "-"))]
        for looks in (one, other)
    ]
    return [text for _, text in one] == [text for _, text in other] and np.allclose(*numbers, atol=0.0101)


def test_every_run_can_be_read_with_its_texts(explorer):
    folder, names = run_names()
    with explorer("plane") as tab:
        choice = field(tab, "run")
        assert sorted(choice.locator("option").evaluate_all("all => all.map(each => each.value)")) == names
        for name in (names[0], names[len(names) // 2], choice.input_value()):
            choice.select_option(name)
            for question in (0, 2):
                field(tab, "question").select_option(str(question))
                run = stored(f"runs/{folder}/{name}")
                text = run["watched"][-1]["heldout"]["texts"]
                tab.locator(".look").get_by_text(list(text.values())[question], exact=True).first.wait_for()
                assert alike(lines(tab), expected(run, question)), (name, question)
                assert not alike(lines(tab), expected(run, 1))
        assert query_of(tab) == "question=2"  # the last of these runs is the one that is shown at the start


def test_a_tap_on_a_point_chooses_its_run(explorer):
    with explorer("plane", width=390, height=1400, has_touch=True, is_mobile=True) as tab:
        before = field(tab, "run").input_value()
        tab.locator("[data-chart=runs]").scroll_into_view_if_needed()
        marks = tab.locator("[data-chart=runs] .marks .filled")
        boxes = [mark.bounding_box() for mark in marks.all()]
        far = max(boxes[:-1], key=lambda box: abs(box["x"] - boxes[-1]["x"]))  # the last is the chosen run's own
        tab.touchscreen.tap(far["x"] + far["width"] / 2, far["y"] + far["height"] / 2)
        after = field(tab, "run").input_value()
        assert after != before and f"run={after}" in query_of(tab)
        assert "utility" in tab.locator(".explorer [role=status]").text_content()


def test_the_address_names_a_run_and_an_unknown_one_is_refused(explorer):
    _, names = run_names()
    with explorer("plane", f"?run={names[0]}&question=1") as tab:
        assert field(tab, "run").input_value() == names[0] and field(tab, "question").input_value() == "1"
    with explorer("plane", "?run=nobody-7") as tab:
        assert "run is never nobody-7" in tab.locator(".notice").inner_text()


def test_files_of_texts_are_small(built_book):
    files = list((built_book / "_static" / "explorers").glob("plane-*.js"))
    assert files and all(100 < file.stat().st_size < BUDGET for file in files)
