"""The explorer of one step of the loop in a browser: its winners are those of `fpo.rules` at every weight."""

from __future__ import annotations

import pytest
import torch
from tools.explorers import field, query_of, stored

from fpo import rules


@pytest.fixture(scope="module")
def prompts():
    return stored("results/llm_pipeline")["results"]["step"]


def winner(prompt, rule, weight):
    """The winner's place by `fpo.rules.choose`, with the stored penalty in place of one that is computed."""
    seen = rules.Candidates(
        rewards=torch.tensor(prompt["reward"]).double(),
        features=torch.zeros(len(prompt["texts"]), 1),
        utilities=torch.tensor(prompt["utility"]).double(),
        empty=torch.tensor([not text for text in prompt["texts"]]),
        reference=rules.Reference(torch.tensor(0.0), torch.zeros(1), torch.tensor(0.0)),
        uniform=torch.tensor(prompt["penalty"].get(rule, [])).double(),  # what `random-penalty` takes as its own
    )
    if rule in prompt["penalty"]:
        return int(rules.choose("random-penalty", seen, weight).winner)
    return int(rules.choose(rule, seen).winner)


def winning_text(tab):
    return tab.locator(".candidates .wins .text").inner_text()


def test_the_winners_are_those_of_python_at_every_weight(explorer, prompts):
    shown = {"standard", *prompts[0]["penalty"], "best-of-u"} - {"kl"}  # which punishes nothing yet
    changed = 0
    with explorer("step") as tab:
        for weight in (0, 0.25, 1, 2.05, 3):
            for number, prompt in enumerate(prompts):
                state = {"prompt": number, "weight": weight}
                found = tab.locator("#explorer-step").evaluate("(root, state) => root.winners(state)", state)
                assert found == {rule: winner(prompt, rule, weight) for rule in shown}, state
                changed += found != {rule: winner(prompt, rule, 0.1) for rule in shown}
    assert changed  # another weight would be seen


def test_the_step_starts_as_the_chapter_plays_it(explorer, prompts):
    content = stored("results/llm_pipeline")["results"]
    assert len(prompts) == min(content["disagreeing"], 8)
    main = ("standard", "relaxed", "practical")
    assert all(len({winner(prompt, rule, 1) for rule in main}) == len(main) for prompt in prompts)
    with explorer("step") as tab:
        for place, text in enumerate(prompts[0]["texts"]):
            item = tab.locator(".candidates li").nth(place)
            assert item.locator(".text").inner_text() == " ".join(text.split())
            reward, penalty = prompts[0]["reward"][place], prompts[0]["penalty"]["relaxed"][place]
            numbers = [reward, penalty, reward + penalty, prompts[0]["utility"][place]]
            told = item.locator(".numbers").inner_text().replace("\N{MINUS SIGN}", "-").replace(";", ",").split(", ")
            assert [float(each.split()[-1]) for each in told] == pytest.approx(numbers, abs=0.0051)
        for rule in main:
            weight, place = tab.locator(f"tr[data-arm={rule}] td").all_inner_texts()
            assert int(place) == winner(prompts[0], rule, 1) + 1
            assert float(weight or 0) == content["gamma"].get(rule, 0)
        assert prompts[0]["reference"].split()[0] in tab.locator(".explorer p.reference").inner_text()


def turned_by_keyboard(tab):
    """The next rule, and from there the least weight: the state that keys alone lead to."""
    field(tab, "rule", "relaxed").focus()
    for key in ("ArrowDown", "Tab", "Home"):
        tab.keyboard.press(key)
    return query_of(tab)


def test_a_weight_that_the_keyboard_does_not_reach_is_seen(explorer):
    with explorer("step") as tab:
        field(tab, "weight").evaluate("slider => { slider.tabIndex = -1; }")
        assert turned_by_keyboard(tab) == "rule=practical"


def test_by_keyboard_the_weight_slides_and_the_winner_changes(explorer, prompts):
    with explorer("step") as tab:
        assert turned_by_keyboard(tab) == "rule=practical&weight=0"
        least = winning_text(tab)
        assert least == " ".join(prompts[0]["texts"][winner(prompts[0], "standard", 1)].split())
        tab.keyboard.press("End")
        most = winning_text(tab)
        assert most == " ".join(prompts[0]["texts"][winner(prompts[0], "practical", 3)].split()) != least
        told = tab.locator(".explorer [role=status]").text_content()
        assert f"practical: {winner(prompts[0], 'practical', 3) + 1}" in told
        query = query_of(tab)
    with explorer("step", f"?{query}") as tab:
        assert winning_text(tab) == most and field(tab, "rule", "practical").is_checked()


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("weight=9", "weight goes from 0 to 3 by 0.05, not to 9"),
        ("rule=best", "rule is one of relaxed, practical, exact, overconfidence, leverage, not best"),
        ("rule=exact,relaxed", "leverage, not exact, relaxed"),
        ("rule=", "rule is one of relaxed"),
        ("prompt=99", "prompt is never 99"),
    ],
)
def test_an_address_that_asks_for_too_much_is_told_so(explorer, query, told):
    with explorer("step", f"?{query}") as tab:
        assert told in tab.locator(".notice").inner_text()
        assert tab.locator(".candidates .wins").count() == 1 and tab.locator("[name=rule]:checked").count() == 1


def test_a_finger_slides_and_nothing_jumps_under_it(explorer):
    """Whatever the weight, the list keeps its height and the page its width."""
    with explorer("step", width=390, has_touch=True, is_mobile=True) as tab:
        slider, found = field(tab, "weight"), set()
        slider.scroll_into_view_if_needed()
        for share in (0.02, 0.2, 0.5, 0.98):
            box = slider.bounding_box()
            tab.touchscreen.tap(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
            found.add((slider.input_value(), tab.locator(".candidates").evaluate("list => list.offsetHeight")))
        assert len({value for value, _ in found}) == 4 and len({height for _, height in found}) == 1
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
