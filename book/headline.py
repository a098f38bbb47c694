"""The book's headline figure, drawn from a results file: `python book/headline.py RESULTS_FOLDER OUT.svg`.

The picture carries the digest of the results it was drawn from, so that a stale one can be told without comparing
pictures.
"""

import hashlib
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fpo import figures


def digest(results: Path) -> str:
    """Identifies the numbers that the headline shows: those of `linear.json`, not where and with what it was made."""
    content = json.loads((results / "linear.json").read_text(encoding="utf-8"))
    shown = [content["parameters"], content["results"]["curves"]]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def draw(results: Path, out: Path) -> None:
    """Draw the true utility of every arm of the linear game against iterations: median, central 95 % of seeds."""
    content = json.loads((results / "linear.json").read_text(encoding="utf-8"))
    curves = dict(content["results"]["curves"])
    iterations = curves.pop("iterations")
    figures.style()
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 2.9))
    for arm, curve in curves.items():
        low, median, high = (np.array(curve[name], dtype=float) for name in ("low", "median", "high"))
        axis.fill_between(iterations, low, high, color=figures.color(arm), alpha=0.2, linewidth=0)
        axis.plot(iterations, median, label=arm, **figures.look(arm))
    axis.set(xlabel="iteration of the loop", ylabel="true utility $U$", xlim=(iterations[0], iterations[-1]))
    axis.set_ylim(0, 1.05 * content["parameters"]["utility_scale"])
    figure.legend(loc="outside upper center", ncols=2)
    # No date, and a digest in its place.
    figure.savefig(out, metadata={"Date": None, "Description": digest(results)})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
