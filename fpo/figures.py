"""One look for every figure of the book: an arm has the same color and line in each of them."""

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's palette, told apart by people with any of the common color deficiencies; lines differ too.
COLORS = {
    "standard": "#D55E00",
    "relaxed": "#0072B2",
    "practical": "#CC79A7",
    "foresight": "#009E73",
    "exact": "#000000",
    "overconfidence": "#56B4E9",
    "leverage": "#882255",
    "kl": "#E69F00",
    "random": "#888888",
    "best-of-u": "#117733",
}
LINES = {"standard": "-", "relaxed": "--", "practical": "-.", "foresight": (0, (1, 1)), "exact": "-"}
MARKERS = {"standard": "o", "relaxed": "s", "practical": "^", "foresight": "D", "exact": "X"}
MARKERS |= {"overconfidence": "p", "leverage": "v", "kl": "d", "random": "*", "best-of-u": "P"}

WIDTH = 5.4  # inches; with 11 pt letters a figure stays readable at the width of a phone


def style() -> None:
    """Set matplotlib up for the book."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 130,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "svg.hashsalt": "fpo",
            "font.size": 11,
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.8,
        }
    )


def look(arm: str) -> dict:
    """Keyword arguments of a line that stands for an arm."""
    return {"color": COLORS[arm], "linestyle": LINES[arm]}


def runs(ax, x: np.ndarray, values: np.ndarray, arm: str) -> None:
    """Every seed as a thin line and their median, seed by seed alive, as a thick one; `values` is (x, seeds)."""
    ax.plot(x, values, color=COLORS[arm], linewidth=0.5, alpha=0.25)
    some = np.isfinite(values).any(axis=1)
    ax.plot(x[some], np.nanmedian(values[some], axis=1), label=arm, **look(arm))


def plane(ax, value, extent: tuple[float, float], levels: np.ndarray) -> None:
    """Contours of `value(signal, noise)` over the signal-noise plane, darker where it is larger."""
    signal, noise = np.meshgrid(np.linspace(0, extent[0], 201), np.linspace(0, extent[1], 201))
    ax.contourf(signal, noise, value(signal, noise), levels=levels, cmap="Greys", alpha=0.5)
    lines = ax.contour(signal, noise, value(signal, noise), levels=levels[1:-1], colors="0.4", linewidths=0.6)
    ax.clabel(lines, fontsize=9, fmt="%g")
    ax.set(xlabel="signal norm", ylabel="noise norm", xlim=(0, extent[0]), ylim=(0, extent[1]))
