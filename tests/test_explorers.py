"""The explorers in a browser: they show what Python computes, by mouse, touch, keyboard and address, and stay small."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tools import pages
from tools.explorers import WHERE, field, query_of, stored, tab_to
from tools.sphinx_book import Book

from fpo import linear

import fpo_explorer_games  # isort: skip  # beside the other extensions, which tools.sphinx_book has put on the path
import fpo_explorer_parts  # isort: skip

BUDGET = 30_000  # bytes of an explorer: its form, its numbers, its script and the one that all share


# The linear game

SETTINGS = [
    {},
    {"through_oracle": False},
    {"gamma": 0.05, "target": 3, "initial_noise": 0.3, "foresight_steps": 4},
    {"rm_lr": 0.01, "foresight_steps": 30, "action_cost": 0.2, "steps": 600},
    {"rm_lr": 0, "rm_decay": 0, "gamma": 0.3},
    {"initial_noise": 0, "target": 1.2, "steps": 77},
]


def in_python(state):
    """The game of fpo.linear with the chapter's settings and these."""
    known = stored("results/linear")["parameters"] | {"arms": list(linear.ARMS)} | state
    return linear.simulate(
        linear.Config(**{name: value for name, value in known.items() if name in linear.Config.model_fields})
    )


def in_browser(tab, state):
    """What the explorer computes: by arm utility, signal norm and noise norm, (3, iterations, seeds)."""
    play = """(root, [arms, state]) => JSON.stringify(arms.map(arm => {
        const run = root.play(arm, state);
        return ["utility", "signal", "noise"].map(name => [...run[name]]);
    }))"""
    found = json.loads(tab.locator("#explorer-linear").evaluate(play, [linear.ARMS, state]))
    return dict(zip(linear.ARMS, np.array(found, dtype=float).reshape(4, 3, -1, 64), strict=True))


def apart(tab, state, others=None):
    """The largest difference between browser and Python over all arms, seeds and iterations."""
    run, found = in_python(state if others is None else others), in_browser(tab, state)
    expected = {arm: np.stack([run.of(arm, what) for what in ("utility", "signal", "noise")]) for arm in linear.ARMS}
    return max(np.abs(found[arm] - expected[arm]).max() for arm in linear.ARMS)


def test_the_linear_game_is_that_of_python_on_every_seed_and_arm(explorer):
    with explorer() as tab:
        for state in SETTINGS:
            assert apart(tab, state) < 1e-5, state


def test_another_game_would_be_seen(explorer):
    with explorer() as tab:
        assert apart(tab, {}, {"gamma": 0.1001}) > 1e-5
        assert apart(tab, {}, {"initial_noise": 0.1001}) > 1e-5


def test_runs_that_diverge_are_lost_in_both(explorer):
    state = {"gamma": 50}  # no slider goes so far
    expected = (in_python(state).diverged_at >= 0).sum(axis=1)
    with explorer() as tab:
        lost = [np.isnan(run[0, -1]).sum() for run in in_browser(tab, state).values()]
    assert lost == list(expected) and max(lost) == 64 and min(lost) == 0


def counted(run, drop):
    """The table's numbers by arm: collapsed runs, median end, median peak."""
    end, peak = run.utility[-1], run.peak()
    rows = zip(run.config.arms, end, peak, strict=True)
    return {arm: ((~(e >= (1 - drop) * p)).sum(), np.nanmedian(e), np.median(p)) for arm, e, p in rows}


def shown(tab):
    """The same as the page shows them."""
    rows = {}
    for row in tab.locator("tr[data-arm]").all():
        collapsed, end, peak = row.locator("td").all_inner_texts()
        if collapsed:
            rows[row.get_attribute("data-arm")] = (int(collapsed.split(" of ")[0]), float(end), float(peak))
    return rows


def test_every_claim_sets_the_game_and_shows_its_counts(explorer):
    content = stored("results/linear")
    presets = fpo_explorer_games.linear_presets(content["parameters"], content)
    claims = [claim for claim in content["claims"] if claim["id"] in presets]
    with explorer() as tab:
        choice = field(tab, "claim")
        for number, claim in enumerate(claims):
            choice.select_option(str(number))
            assert choice.input_value() == str(number)  # the fields stand as the claim sets them, to the last digit
            assert claim["verdict"] in tab.locator(".claim-found").inner_text()
            expected = counted(in_python(presets[claim["id"]]), content["parameters"]["collapse_drop"])
            assert shown(tab).keys() == expected.keys()
            for arm, row in shown(tab).items():
                assert row == pytest.approx(expected[arm], abs=0.006), (claim["id"], arm)


def test_a_setting_of_ones_own_is_no_claim(explorer):
    with explorer() as tab:
        field(tab, "claim").select_option("0")
        field(tab, "gamma").fill("0.3")
        assert field(tab, "claim").input_value() == ""


# By keyboard, touch and address


def test_keyboard_alone_turns_the_game_and_the_address_follows(explorer):
    with explorer() as tab:
        before = shown(tab)
        field(tab, "arms", "foresight").focus()
        tab.keyboard.press("Space")
        assert "foresight" in before and "foresight" not in shown(tab)
        tab_to(tab, "action_cost")
        tab.keyboard.press("ArrowRight")
        assert query_of(tab) == "arms=standard,relaxed,practical&action_cost=0.105"
        tab_to(tab, "reset")
        tab.keyboard.press("Enter")
        assert (shown(tab), query_of(tab)) == (before, "")


@pytest.mark.parametrize("name", ["action_cost", "reset"])
def test_what_the_keyboard_does_not_reach_is_seen(explorer, name):
    with explorer() as tab:
        tab.locator(f".explorer :is([name={name}], .{name})").evaluate("one => { one.tabIndex = -1; }")
        field(tab, "arms", "foresight").focus()
        with pytest.raises(AssertionError, match=f"no way to '{name}'"):
            tab_to(tab, name)


def test_a_finger_is_enough(explorer):
    with explorer(width=390, has_touch=True, is_mobile=True) as tab:
        field(tab, "arms", "relaxed").tap()
        slider = field(tab, "gamma")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box["height"] >= 24
        tab.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
        assert "relaxed" not in shown(tab) and 0.6 < float(slider.input_value()) < 0.9


def test_a_finger_moves_the_margin(explorer):
    with explorer("neural", width=390, has_touch=True, is_mobile=True) as tab:
        slider, before = field(tab, "margin"), tab.locator(".explorer .rule").inner_text()
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box["height"] >= 24
        tab.touchscreen.tap(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
        assert query_of(tab) == f"margin={slider.input_value()}"
        assert tab.locator(".explorer .rule").inner_text() != before


def test_the_address_restores_the_view(explorer):
    with explorer() as tab:
        field(tab, "arms", "practical").uncheck()
        field(tab, "target").fill("3")
        field(tab, "through_oracle").uncheck()
        query, seen = query_of(tab), shown(tab)
    assert query == "arms=standard,relaxed,foresight&target=3&through_oracle=no"
    with explorer(query=f"?{query}") as tab:
        assert shown(tab) == seen and field(tab, "target").input_value() == "3"
        assert tab.locator(".notice").inner_text() == ""
        # A link on the page itself, too.
        tab.evaluate("location.hash = '#explorer-linear?target=1'")
        tab.wait_for_function("document.querySelector('[name=target]').value === '1'")
        assert field(tab, "through_oracle").is_checked()


WANTED = [
    ("gamma=7", "gamma goes from 0 to 1 by 0.005, not to 7", {"gamma": "1"}),
    ("gamma=-1", "gamma goes from 0 to 1", {"gamma": "0"}),
    ("steps=10.5", "steps goes from 20 to 1000", {"steps": "20"}),
    ("gamma=much", "gamma is a number, not much", {"gamma": "0.1"}),
    ("gamma=", "gamma is a number", {"gamma": "0.1"}),
    ("arms=best", "arms is one of standard, relaxed, practical, foresight, not best", {}),
    ("through_oracle=1", "through_oracle is yes or no, not 1", {}),
    ("claim=2", "there is no claim here", {}),
    ("<img src=x onerror=alert(1)>", "there is no <img src here", {}),
    ("%E0%A4%A", "there is no", {}),
]


def test_an_address_that_asks_for_too_much_is_told_so(explorer):
    with explorer(query="?gamma=7") as tab:
        notice = tab.locator(".notice")
        for query, told, values in WANTED:
            tab.evaluate("query => { location.hash = '#explorer-linear?' + query; }", query)
            tab.get_by_text(told).wait_for()
            assert told in notice.inner_text()
            assert {name: field(tab, name).input_value() for name in values} == values
            assert len(shown(tab)) == 4
        field(tab, "gamma").fill("0.2")
        assert not notice.is_visible()


def test_a_drag_is_told_once_at_its_end(explorer):
    with explorer() as tab:
        status = tab.locator(".explorer [role=status]")
        before = status.text_content()
        slider = field(tab, "action_cost")
        for value in ("0.4", "0.5"):
            slider.evaluate(
                "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})); }",
                value,
            )
        tab.wait_for_function("document.querySelector('[name=action_cost]').parentElement.innerText.includes('0.5')")
        assert status.text_content() == before and query_of(tab) == ""
        slider.evaluate("field => field.dispatchEvent(new Event('change', {bubbles: true}))")
        assert before != status.text_content() and status.text_content().startswith("standard: ")
        assert query_of(tab) == "action_cost=0.5"


# The neural study


def kept(runs, margin):
    """How many runs are saved, as the chapter counts them."""
    end, peak = (np.array(runs[name], float) for name in ("final", "peak"))
    best = stored("results/neural")["parameters"]["utility_scale"]
    return int(((end >= best - margin) & (peak - end <= margin)).sum())


def counts(tab):
    return [int(row.locator("td").last.inner_text().split(" of ")[0]) for row in tab.locator("tr[data-row]").all()]


def test_saved_runs_are_those_of_python_at_every_margin(explorer):
    study = {"results": fpo_explorer_games.neural_study(lambda name: stored(f"runs/{name}"))}
    entries = [entry for rows in fpo_explorer_games.NEURAL.values() for entry, _, _ in rows]
    runs = [fpo_explorer_games.look_up(study, entry) for entry in entries]
    with explorer("neural") as tab:
        slider = field(tab, "margin")
        assert counts(tab)[1] == stored("results/neural")["results"]["summary"]["relaxed"]["saved"]
        for margin in ("0.05", "0.5", "1", "1.35", "2", "3.8", "5"):
            slider.fill(margin)
            assert counts(tab) == [kept(each, float(margin)) for each in runs], margin
            assert f"no more than {margin} below its peak" in tab.locator(".rule").inner_text()
            filled = [row.locator(".strip .filled").count() for row in tab.locator("tr[data-row]").all()]
            assert filled == counts(tab)
        assert counts(tab) != [kept(each, 4.9) for each in runs]


def test_the_margin_is_turned_by_keyboard_and_kept_in_the_address(explorer):
    with explorer("neural", "?margin=0.5") as tab:
        before = counts(tab)
        field(tab, "margin").focus()
        tab.keyboard.press("End")
        assert counts(tab) != before and query_of(tab) == "margin=5"
        assert "relaxed: " in tab.locator(".explorer [role=status]").text_content()
    with explorer("neural", "?margin=9") as tab:
        assert "margin goes from 0.05 to 5" in tab.locator(".notice").inner_text() and query_of(tab) == "margin=9"


# On every page with an explorer

# Where everything stands in an explorer as the page brings it, and as the script has left it.
PLACES = """async name => {
  const root = document.getElementById(`explorer-${name}`);
  const parts = "form, form > :not(.visually-hidden), .slider, tr, li, .look";
  const seen = root => [root, ...root.querySelectorAll(parts)].filter(node => node.getClientRects().length);
  const places = root => seen(root).map(node => {
    const box = node.getBoundingClientRect();
    return [node.tagName, Math.round(box.top - root.getBoundingClientRect().top), Math.round(box.height)];
  });
  const after = places(root);
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const fresh = page.getElementById(root.id);
  fresh.classList.add("live");
  root.replaceWith(fresh);
  const before = places(fresh);
  fresh.replaceWith(root);
  return [before, after];
}"""


@pytest.mark.parametrize("name", WHERE)
def test_nothing_moves_when_the_script_takes_over(explorer, name):
    with explorer(name) as tab:
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            before, after = tab.evaluate(PLACES, name)
            assert before == after and len(after) > 8
        # As if no room had been kept for a line.
        tab.evaluate("name => document.querySelector(`#explorer-${name} form > *`).append('x '.repeat(999))", name)
        before, after = tab.evaluate(PLACES, name)
        assert before != after


@pytest.mark.parametrize("name", WHERE)
def test_without_a_script_the_still_stands_and_on_paper_its_figure_alone(explorer, name):
    with explorer(name, java_script_enabled=False) as tab:
        root = tab.locator(f"#explorer-{name}")
        assert root.locator(".explorer-still img").is_visible() and not root.locator("form").is_visible()
    with explorer(name) as tab:
        root = tab.locator(f"#explorer-{name}")
        assert root.locator("form").is_visible() and not root.locator(".explorer-still").is_visible()
        tab.emulate_media(media="print")
        assert not root.is_visible()
        still = root.locator(".explorer-still img").get_attribute("src")
        assert tab.locator(f'article figure img[src="{still}"]').is_visible()


def test_on_paper_the_first_page_shows_the_still(address, browser):
    with closing(browser._chromium.new_context()) as session:
        tab = session.new_page()
        tab.goto(f"{address}book/index.html")
        tab.emulate_media(media="print")
        root = tab.locator("#explorer-linear")
        assert root.locator(".explorer-still").is_visible() and not root.locator("form").is_visible()


@pytest.mark.parametrize("name", WHERE)
def test_the_still_stands_if_the_script_does_not_come(address, browser, name):
    session = browser._chromium.new_context()
    tab = session.new_page()
    tab.route("**/explorers/explorer.js*", lambda route: route.abort())
    tab.goto(address + WHERE[name])
    tab.wait_for_selector(f"#explorer-{name} .explorer-still")
    assert not tab.locator(f"#explorer-{name} form").is_visible()
    session.close()


@pytest.mark.parametrize("name", WHERE)
def test_from_a_file_as_from_a_server(built_book, browser, name):
    session = browser._chromium.new_context()
    tab = session.new_page()
    tab.goto((built_book / WHERE[name]).as_uri())
    tab.wait_for_selector(f"#explorer-{name}[data-ready]")
    tab.locator(f"#explorer-{name}").locator("input[type=range], select:not([data-derived])").first.focus()
    tab.keyboard.press("ArrowDown" if name == "plane" else "ArrowRight")
    assert query_of(tab)
    session.close()


def weight(built_book, name):
    """Bytes that an explorer adds to a page."""
    root = pages.parsed(built_book, WHERE[name]).select_one(f"#explorer-{name}")
    inline = sum(len(str(part).encode()) for part in root.find_all(["form", "script"], recursive=False))
    scripts = (built_book / "_static" / "explorers" / f"{each}.js" for each in ("explorer", name))
    return inline + sum(script.stat().st_size for script in scripts)


@pytest.mark.parametrize("name", WHERE)
def test_an_explorer_is_small(built_book, name):
    assert 1000 < weight(built_book, name) < BUDGET


def test_only_pages_with_an_explorer_load_its_scripts(built_book):
    for path in pages.page_paths(built_book):
        soup = pages.parsed(built_book, path)
        loaded = {
            Path(script["src"].split("?")[0]).stem
            for script in soup.select("script[src]")
            if "/explorers/" in script["src"]
        }
        wanted = {root["data-explorer"] for root in soup.select(".explorer")}
        assert loaded == (wanted | {"explorer"} if wanted else set()), path


# What the directive refuses


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (":::{explorer} nothing\n:::", "there is no explorer 'nothing', only linear"),
        (":::{explorer} linear\nText.\n:::", "nothing stands for the explorer without JavaScript"),
        (":::{explorer} linear\n:figure: none\n:::", "no figure of this page is named 'none'"),
        (":::{explorer} linear\n![A dot](dot.png)\n:::", "there is no results file notebooks/results/linear.json"),
    ],
)
def test_a_fault_of_the_directive_is_a_warning(tmp_path, page, message):
    book = Book(tmp_path)
    if "figure" in page:
        (book.source / "notebooks" / "results" / "linear.json").write_text(json.dumps(stored("results/linear")))
    extensions = ["myst_nb", "sphinx_external_toc", "fpo_book", "fpo_claims", "fpo_pages", "fpo_explorer"]
    _, warnings = book.build(page, extensions=extensions)
    assert message in warnings and "index.md:3: WARNING" in warnings


def test_formulas_become_letters_or_a_fault():
    assert fpo_explorer_parts.plain(r"$\gamma = 2\eta k$, up to $\gamma = 1/|t|^2$.") == "γ = 2η k, up to γ = 1/|t|²."
    with pytest.raises(fpo_explorer_parts.Fault, match=r"holds \\"):
        fpo_explorer_parts.plain(r"$\frac12$")


def test_colors_in_the_dark_are_those_of_figures(explorer):
    """What book.css does to a figure's color, the explorer has computed."""
    looks = fpo_explorer_parts.looks(list(linear.ARMS))
    with explorer() as tab:
        read = """([color, other]) => {
          const canvas = document.createElement("canvas").getContext("2d");
          canvas.filter = "invert(1) hue-rotate(180deg) brightness(1.2)";
          canvas.fillStyle = color;
          canvas.fillRect(0, 0, 9, 9);
          return [...canvas.getImageData(4, 4, 1, 1).data].slice(0, 3);
        }"""
        for look in looks.values():
            dark = [int(look["dark"][place : place + 2], 16) for place in (1, 3, 5)]
            assert tab.evaluate(read, [look["light"], ""]) == pytest.approx(dark, abs=3)
