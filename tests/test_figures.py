"""One look for each arm and rule; figures as sharp and transparent pictures with a palette."""

import base64
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from matplotlib.colors import to_rgb
from matplotlib.markers import MarkerStyle
from PIL import Image

from fpo import figures, linear, neural, rules

PLAN = yaml.safe_load((Path(__file__).parents[1] / "notebooks" / "parameters" / "llm_study.yaml").read_text())
# Early stopping is no arm that plays: it is read off the standard one.
ARMS = sorted({*rules.RULES, *linear.ARMS, *neural.ARMS, *PLAN["arms"], "early-stop"})


@pytest.fixture(autouse=True)
def styled():
    with plt.rc_context():
        figures.style()
        yield
    plt.close("all")


@pytest.mark.parametrize("arm", ARMS)
def test_every_rule_and_every_arm_of_both_games_has_a_look(arm):
    look, filled, hollow = figures.look(arm), figures.points(arm), figures.points(arm, filled=False)
    (line,), (dots,), (rings,) = (plt.plot([0, 1], [0, 1], **kind) for kind in (look, filled, hollow))
    assert line.get_color() == dots.get_color() == rings.get_color() == figures.color(arm)
    assert line.get_linestyle() != "None" and dots.get_linestyle() == rings.get_linestyle() == "None"
    assert dots.get_marker() == rings.get_marker() not in ("", "None", None)
    assert (dots.get_markerfacecolor(), rings.get_markerfacecolor()) == (figures.color(arm), "none")


def test_no_two_arms_look_alike():
    """Not by line and not by marker; nothing has a look that is no arm or rule."""
    assert sorted(figures.LOOKS) == ARMS
    for one, other in itertools.combinations(figures.LOOKS.values(), 2):
        assert (one.color, one.line) != (other.color, other.line)
        assert (one.color, one.marker) != (other.color, other.marker)


def test_every_marker_can_be_hollow():
    assert [arm for arm, look in figures.LOOKS.items() if not MarkerStyle(look.marker).is_filled()] == []
    assert not MarkerStyle("3").is_filled() and not MarkerStyle("x").is_filled()


@pytest.mark.parametrize("ask", [figures.color, figures.look, figures.points])
def test_another_arm_is_refused(ask):
    with pytest.raises(ValueError, match="^arm = 'exakt': must be one of standard, relaxed, .*, best-of-u$"):
        ask("exakt")


def test_runs_show_every_seed_and_the_median_of_those_alive():
    values = np.array([[1.0, 2.0, 6.0], [1.0, np.nan, 5.0], [np.nan] * 3])
    _, axis = plt.subplots()
    figures.runs(axis, np.arange(3), values, "relaxed")
    *seeds, median = axis.lines
    assert len(seeds) == 3 and median.get_label() == "relaxed" and median.get_linewidth() > seeds[0].get_linewidth()
    np.testing.assert_array_equal(median.get_xydata(), [[0, 2], [1, 3]])
    figures.runs(axis, np.arange(3), values, "kl", np.nanmean)
    np.testing.assert_array_equal(axis.lines[-1].get_xydata(), [[0, 3], [1, 3]])


def test_a_column_shows_ends_filled_and_peaks_hollow_side_by_side():
    _, axis = plt.subplots()
    figures.column(axis, 2, np.array([1.0, 2.0]), np.array([3.0, 4.0]), "kl")
    peaks, ends = axis.lines
    np.testing.assert_allclose(peaks.get_xydata(), [[1.7, 3], [2.3, 4]])
    np.testing.assert_allclose(ends.get_xydata(), [[1.7, 1], [2.3, 2]])
    assert peaks.get_markerfacecolor() == "none" != ends.get_markerfacecolor()


def test_all_letters_have_one_size_and_greek_ones_are_the_texts():
    figure, axis = plt.subplots()
    axis.plot([0, 1], label="arm")
    axis.set(xlabel=r"$\gamma$", ylabel="U", title="title")
    figure.suptitle("above")
    figure.supxlabel("below")
    figures.plane(axis, lambda signal, noise: signal + noise, (1, 1), np.linspace(0, 2, 5))
    axis.legend()
    figure.draw_without_rendering()
    letters = [text for text in figure.findobj(plt.Text) if text.get_text()]
    assert {text.get_fontsize() for text in letters} == {figures.LETTERS} and len(letters) > 10
    assert plt.rcParams["mathtext.fontset"] == "cm"


def swatches():
    """A figure with a field of each look's color, and a white one, over nothing."""
    colors = [*map(figures.color, figures.LOOKS), "white"]
    figure = plt.figure(figsize=(figures.WIDTH, 1), layout="none")
    for i, color in enumerate(colors):
        figure.add_axes((i / len(colors), 0.25, 1 / len(colors), 0.5), facecolor=color, xticks=[], yticks=[])
    return figure, colors


def test_a_picture_has_twice_the_pixels_a_palette_and_no_background():
    figure, colors = swatches()
    data, shown = figures.png(figure)
    picture = Image.open(io.BytesIO(data))
    assert shown == {"width": figures.SHOWN} and picture.mode == "P"
    assert abs(picture.width - 2 * figures.SHOWN) <= 1
    seen = np.asarray(picture.convert("RGBA"))
    assert (seen[:10] == 0).all() or (seen[:10, :, 3] == 0).all()
    middles = ((np.arange(len(colors)) + 0.5) / len(colors) * picture.width).astype(int)
    wanted = [[*np.round(255 * np.array(to_rgb(color))), 255] for color in colors]
    np.testing.assert_allclose(seen[picture.height // 2, middles], wanted, atol=2)


def crowded():
    rng = np.random.default_rng(0)
    figure, axes = plt.subplots(2)
    for arm in ("standard", "relaxed", "exact"):
        figures.runs(axes[0], np.arange(50), rng.normal(size=(50, 8)).cumsum(0), arm)
    figures.plane(axes[1], lambda signal, noise: signal * noise, (1, 1), np.linspace(0, 1, 6))
    return figure


def test_a_picture_is_as_drawn_on_white_and_the_same_each_time():
    data, _ = figures.png(crowded())
    assert data == figures.png(crowded())[0]
    drawn = io.BytesIO()
    crowded().savefig(drawn, dpi=2 * figures.SHOWN / figures.WIDTH, facecolor="white")
    assert len(data) < len(drawn.getvalue()) / 2
    white = Image.new("RGBA", Image.open(drawn).size, "white")
    seen = np.asarray(Image.alpha_composite(white, Image.open(io.BytesIO(data)).convert("RGBA")), float)
    assert np.abs(seen - np.asarray(Image.open(drawn), float)).mean() < 1


def test_a_narrower_figure_has_letters_of_the_same_size():
    figure = plt.figure(figsize=(figures.WIDTH / 2, 1))
    assert figures.png(figure)[1] == {"width": figures.SHOWN // 2}


NOTEBOOK = """
import base64, json
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance()
with capture_output() as seen:
    for cell in (
        "import matplotlib.pyplot as plt; from fpo import figures; figures.style()",
        "plt.plot([1]); plt.show()",
    ):
        shell.run_cell(cell).raise_error()
(output,) = seen.outputs
print(json.dumps([base64.b64encode(output.data["image/png"]).decode(), output.metadata]))
"""


def test_a_notebooks_figures_are_such_pictures():
    surroundings = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data, metadata = json.loads(done.stdout)
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.mode == "P" and abs(picture.width - 2 * figures.SHOWN) <= 1
    # A dark notebook puts something light behind it.
    assert metadata == {"image/png": {"width": figures.SHOWN}, "needs_background": "light"}
