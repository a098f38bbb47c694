"""One look for every figure of the book: an arm has the same color, line and marker in each of them."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# Inches. With letters of LETTERS points and a page that shows a figure at most as wide as SHOWN, letters are 9 pt or
# more where the text is 343 pixels wide, as on a phone, and never larger than the text's 16 pixels.
WIDTH, LETTERS = 3.9, 10
SHOWN = 448  # CSS pixels; book/_static/book.css limits other pictures to the same


@dataclass(frozen=True)
class Look:
    """How an arm or a selection rule is drawn; a line is as matplotlib writes it."""

    color: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str


# Okabe and Ito's palette and three more, told apart by people with any of the common color deficiencies; lines and
# markers differ too.
LOOKS = MappingProxyType(
    {
        "standard": Look("#D55E00", "-", "o"),
        "relaxed": Look("#0072B2", "--", "s"),
        "practical": Look("#CC79A7", "-.", "^"),
        "foresight": Look("#009E73", (0, (1, 1)), "D"),
        "exact": Look("#000000", "-", "X"),
        "overconfidence": Look("#1A8CFF", (0, (5, 1)), "p"),
        "leverage": Look("#882255", (0, (3, 1, 1, 1)), "v"),
        "kl": Look("#A49046", (0, (3, 1, 1, 1, 1, 1)), "d"),
        "random": Look("#888888", (0, (1, 3)), "*"),
        # A relative of an arm has its color.
        "relaxed-centered": Look("#0072B2", ":", "<"),
        "practical-centered": Look("#CC79A7", ":", ">"),
        "exact-centered": Look("#000000", ":", "h"),
        "anchor-other": Look("#CC79A7", (0, (6, 1, 1, 1)), "s"),
        "random-penalty": Look("#888888", (0, (4, 2)), "o"),
        "relaxed-permuted": Look("#0072B2", (0, (1, 4)), "v"),
        "refit": Look("#D55E00", (0, (4, 1)), "H"),
        "refit-kl": Look("#A49046", (0, (1, 2)), "8"),
        "all-labels": Look("#D55E00", (0, (1, 2)), "^"),
        "early-stop": Look("#D55E00", (0, (6, 1, 1, 1)), "D"),
        "best-of-u": Look("#117733", (0, (8, 2)), "P"),
    }
)


def style() -> None:
    """Set matplotlib up for the book; in a notebook, figures become PNGs as `png` writes them."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 2.9),
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "fpo",
            "mathtext.fontset": "cm",
            "font.size": LETTERS,
            **dict.fromkeys(("axes.labelsize", "axes.titlesize", "figure.titlesize", "figure.labelsize"), LETTERS),
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), LETTERS),
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.6,
        }
    )
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    if shell:
        plt.switch_backend(plt.get_backend())  # the notebook's backend brings a formatter of its own: let it come first
        shell.display_formatter.formatters["image/png"].for_type(Figure, png)


def png(figure: Figure) -> tuple[bytes, dict[str, Any]]:
    """A figure as a transparent PNG with a palette, two pixels for each at which it is shown, and its width there."""
    drawn = io.BytesIO()
    shown = round(SHOWN * figure.get_figwidth() / WIDTH)
    figure.savefig(drawn, format="png", dpi=2 * SHOWN / WIDTH, pil_kwargs={"compress_level": 1})
    pixels = np.asarray(Image.open(drawn), dtype=float)
    alpha = pixels[..., 3:] / 255
    color = alpha * pixels[..., :3]
    # Pillow finds good palettes of opaque colors only: of the picture as it looks on white. Each of its places then
    # gets the mean of the pixels there, alpha and all; the last is for what is empty.
    on_white = Image.fromarray((color + 255 * (1 - alpha)).round().astype(np.uint8))
    places = np.array(on_white.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    places[alpha[..., 0] == 0] = 255
    parts = np.concatenate([color, alpha], axis=-1).reshape(-1, 4).T
    sums = np.stack([np.bincount(places.ravel(), part, 256) for part in parts], axis=1)
    count = np.bincount(places.ravel(), minlength=256)[:, None]
    solid = sums[:, :3] / np.maximum(sums[:, 3:], 1e-9)
    palette = np.concatenate([solid, 255 * sums[:, 3:] / np.maximum(count, 1)], axis=1)
    indexed = Image.fromarray(places)
    indexed.putpalette(palette.round().clip(0, 255).astype(np.uint8).tobytes(), "RGBA")
    written = io.BytesIO()
    indexed.save(written, "PNG", optimize=True)
    return written.getvalue(), {"width": shown}


def _of(arm: str) -> Look:
    if arm not in LOOKS:
        raise ValueError(f"arm = {arm!r}: must be one of {', '.join(LOOKS)}")
    return LOOKS[arm]


def color(arm: str) -> str:
    """The color of an arm or rule.

    Raises
    ------
    ValueError
        If there is no such arm or rule; so do `look` and `points`.
    """
    return _of(arm).color


def look(arm: str) -> dict[str, Any]:
    """Keyword arguments of a line that stands for an arm: `axis.plot(x, y, **look(arm))`."""
    return {"color": color(arm), "linestyle": _of(arm).line}


def points(arm: str, filled: bool = True) -> dict[str, Any]:
    """Keyword arguments of points that stand for an arm, filled or hollow: `axis.plot(x, y, **points(arm))`."""
    face = color(arm) if filled else "none"
    return {
        "color": color(arm),
        "marker": _of(arm).marker,
        "markerfacecolor": face,
        "markersize": 4,
        "linestyle": "none",
    }


def runs(
    axis: Axes, x: np.ndarray, values: np.ndarray, arm: str, middle: Callable[..., np.ndarray] = np.nanmedian
) -> None:
    """Every seed as a thin line and the `middle` of those alive as a thick one; `values` is (x, seeds)."""
    axis.plot(x, values, color=color(arm), linewidth=0.5, alpha=0.25)
    some = np.isfinite(values).any(axis=1)
    axis.plot(x[some], middle(values[some], axis=1), label=arm, **look(arm))


def column(axis: Axes, x: float, final: np.ndarray, peak: np.ndarray, arm: str) -> None:
    """All seeds of an arm side by side around `x`: where each ended (filled) and its peak (hollow); both (seeds)."""
    across = x + np.linspace(-0.3, 0.3, len(final))
    axis.plot(across, peak, alpha=0.5, **points(arm, filled=False))
    axis.plot(across, final, **points(arm))


def plane(
    axis: Axes, value: Callable[[np.ndarray, np.ndarray], np.ndarray], extent: tuple[float, float], levels: np.ndarray
) -> None:
    """Contours of `value(signal, noise)` over the signal-noise plane, darker where it is larger."""
    signal, noise = np.meshgrid(np.linspace(0, extent[0], 201), np.linspace(0, extent[1], 201))
    axis.contourf(signal, noise, value(signal, noise), levels=levels, cmap="Greys", alpha=0.5)
    lines = axis.contour(signal, noise, value(signal, noise), levels=levels[1:-1], colors="0.4", linewidths=0.6)
    for label in axis.clabel(lines, fontsize=LETTERS, fmt="%g"):
        label.set_rotation(0)  # along its line a 6 may stand on its head
    axis.set(xlabel="signal norm", ylabel="noise norm", xlim=(0, extent[0]), ylim=(0, extent[1]))
