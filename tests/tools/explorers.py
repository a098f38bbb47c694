"""Explorers of the built book in a browser: where they are, opening one, and asking it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHERE = {
    "linear": "notebooks/linear.html",
    "neural": "notebooks/neural.html",
    "step": "notebooks/llm_pipeline.html",
    "plane": "notebooks/llm_study.html",
}


def stored(path):
    """The content of a JSON file below notebooks/."""
    return json.loads((ROOT / "notebooks" / f"{path}.json").read_text(encoding="utf8"))


@contextmanager
def opened(browser, address, name="linear", query="", width=1280, height=900, **options):
    """An explorer's page, once the script has drawn, in a tab with nothing stored; what failed in the page, fails here.

    Tabs are used again, since a new one is a process of its own that fetches all files anew: half of what a test takes.
    """
    kind = repr((width, height, sorted(options.items())))
    idle = browser.idle.setdefault(kind, [])
    if not idle:
        idle.append(browser._chromium.new_context(viewport={"width": width, "height": height}, **options).new_page())
    tab = idle.pop()
    told = []
    tab.on("pageerror", listen := lambda error: told.append(str(error)))
    tab.goto(f"{address}{WHERE[name]}#explorer-{name}{query}")
    if options.get("java_script_enabled", True):
        tab.wait_for_selector(f"#explorer-{name}[data-ready]", state="attached")
    yield tab
    tab.remove_listener("pageerror", listen)
    tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.goto("about:blank")
    tab.set_viewport_size({"width": width, "height": height})
    tab.emulate_media(media="null")
    idle.append(tab)
    assert not told


def field(tab, name, value=None):
    """A field of the explorer, or that one of a group which stands for a value."""
    return tab.locator(f".explorer [name={name}]" + (f"[value={value}]" if value else ""))


def tab_to(tab, name, presses=40, called="document.activeElement.name, document.activeElement.className"):
    """Go on by Tab to what has this name or class, or is so `called` by other expressions of JavaScript."""
    for _ in range(presses):
        tab.keyboard.press("Tab")
        if name in tab.evaluate(f"[{called}]"):
            return
    raise AssertionError(f"no way to {name!r} by keyboard")


def query_of(tab):
    """The state as it stands in the address."""
    return tab.evaluate("decodeURIComponent(location.hash)").partition("?")[2]
