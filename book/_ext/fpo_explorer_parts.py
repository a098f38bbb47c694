"""What the explorers' forms are made of: sliders, switches, tables, room for charts, and how figures draw an arm."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fpo_book import Fault
from markupsafe import Markup

LETTERS = {r"\gamma": "γ", r"\eta": "η", "^2": "²"}
STATUS = Markup('<p class="notice" role="alert"></p><p class="visually-hidden" role="status"></p>')


def plain(text: str) -> str:
    """A text with a little $math$ as letters alone, for places that take no formulas."""
    for tex, letter in LETTERS.items():
        text = text.replace(tex, letter)
    text = re.sub(r"\$([^$]*)\$", r"\1", text)
    if left := re.search(r"[\\$^_{}]", text):
        raise Fault(f"{text!r} holds {left[0]}, which cannot be shown without formulas")
    return text


def on_black(color: str) -> str:
    """The color that book.css's filter for figures in the dark makes of a color: as #rrggbb, both.

    Examples
    --------
    >>> on_black("#000000")
    '#ffffff'
    """
    turn = ((-0.574, 1.430, 0.144), (0.426, 0.430, 0.144), (0.426, 1.430, -0.856))  # the hue by half a circle
    inverted = [1 - int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    clipped = [min(1, max(0, sum(w * c for w, c in zip(row, inverted, strict=True)))) for row in turn]
    return "#" + "".join(f"{min(255, round(1.2 * 255 * c)):02x}" for c in clipped)


def looks(arms: Iterable[str], width: float = 2.0) -> dict[str, dict[str, Any]]:
    """How figures draw the arms, in SVG's words: colors on white and black, dashes of a line, a marker of radius 1."""
    from matplotlib import rcParams
    from matplotlib.markers import MarkerStyle

    from fpo import figures

    named = {"-": (), "--": "dashed", "-.": "dashdot", ":": "dotted"}
    letters: dict[Any, str] = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # of matplotlib's codes for the parts of a path
    found = {}
    for arm in arms:
        look = figures.LOOKS[arm]
        dashes: Any = named[look.line] if isinstance(look.line, str) else look.line[1]
        dashes = rcParams[f"lines.{dashes}_pattern"] if isinstance(dashes, str) else dashes
        marker = MarkerStyle(look.marker)
        outline = marker.get_path().transformed(marker.get_transform()).iter_segments(simplify=False)
        found[arm] = {
            "light": look.color,
            "dark": on_black(look.color),
            "dash": " ".join(f"{width * dash:.3g}" for dash in dashes) or "none",
            "marker": "".join(letters[code] + marker_points(code, points) for points, code in outline),
        }
    return found


def marker_points(code: Any, points: Any) -> str:
    """The points of one part of a marker, in units of its radius and with y downward; the last part only closes it."""
    flipped = [f"{round(2 * each * (-1) ** place, 2) + 0:g}" for place, each in enumerate(points)]
    return "" if code == 79 else " ".join(flipped)


def swatch(look: dict[str, Any]) -> Markup:
    """An arm's line, to stand beside its name."""
    shape = '<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path class="ink thick" style="{}" {}/></svg>'
    style = f"--light:{look['light']};--dark:{look['dark']}"
    return Markup(shape).format(style, Markup('stroke-dasharray="{}" d="M0 6h28"').format(look["dash"]))


def slider(
    name: str, label: str, least: float, most: float, step: float, value: float, others: Iterable[float] = ()
) -> Markup:
    """A range with its label and its value, wide and fine enough for other values that it is to take."""
    wanted = [value, *others]
    least, most = min(least, *wanted), max(most, *wanted)
    fits = all(abs((each - least) / step - round((each - least) / step)) <= 1e-6 for each in wanted)
    text = Markup('<label class="slider"><span>{} <span class="value" aria-hidden="true">{}</span></span>')
    field = Markup('<input type="range" name="{}" min="{}" max="{}" step="{}" value="{}"></label>')
    return text.format(label, value) + field.format(name, least, most, step if fits else "any", value)


def checkbox(name: str, label: Any, value: Any = None, checked: bool = True, kind: str = "checkbox") -> Markup:
    """One of a group where it has a value, else a yes or no."""
    given = Markup(' value="{}"').format(value) if value else ""
    box = Markup('<label class="check"><input type="{}" name="{}"{}{}> <span>{}</span></label>')
    return box.format(kind, name, given, Markup(" checked") if checked else "", label)


def choice(
    name: str, label: str, options: Iterable[tuple[Any, Any]], classes: str = "pick across", more: str = ""
) -> Markup:
    """A list to choose from: pairs of a value and its text; `more` are other attributes."""
    listed = Markup("").join(Markup('<option value="{}">{}</option>').format(*option) for option in options)
    field = Markup('<label>{} <select name="{}"{}>{}</select></label>').format(label, name, Markup(more), listed)
    return Markup('<div class="{}">{}</div>').format(classes, field)


def switches(legend: str, boxes: Iterable[Markup]) -> Markup:
    """Checkboxes or radio buttons that belong together."""
    group = Markup('<fieldset class="across"><legend>{}</legend>{}</fieldset>')
    return group.format(legend, Markup("").join(boxes))


def reset(text: str) -> Markup:
    """The button that sets everything back."""
    return Markup('<p class="across"><button type="button" class="reset">{}</button></p>').format(text)


def chart(name: str, label: str, width: int = 340, height: int = 250) -> Markup:
    """Room for a chart, which the script draws."""
    shape = (
        '<div class="chart {0}"><svg data-chart="{0}" viewBox="0 0 {2} {3}" role="img" aria-label="{1}"></svg></div>'
    )
    return Markup(shape).format(name, label, width, height)


def numbers_table(caption: str, heads: Sequence[str], rows: Mapping[str, dict[str, Any]]) -> Markup:
    """A table whose cells the script fills: a row for each arm, with its line."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(each) for each in heads)
    cells = Markup("<td></td>") * (len(heads) - 1)
    row = Markup('<tr data-arm="{0}"><th scope="row">{1} {0}</th>{2}</tr>')
    body = Markup("").join(row.format(arm, swatch(look), cells) for arm, look in rows.items())
    made = "<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>"
    return Markup(made).format(caption, head, body)


def short(number: float | None) -> float | None:
    """A utility with three decimals, or null where the run diverged."""
    return None if number is None else round(number, 3)


def dumps(data: Any) -> str:
    """JSON that can stand in a script of a page, which the parser of HTML ends at the first "</"."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", r"<\/")
