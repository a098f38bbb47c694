"""What the controlled games share: settings, divergence, and the record of all arms and seeds as one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fpo.landscapes import Array, Bell, Landscape
from fpo.parameters import Parameters, Seeds, real, whole

# With an action's coordinate, or another measure of a game's choice, beyond this a run counts as diverged: the games'
# own scale is about 3.
DIVERGED = 1e6

_SETTINGS = {
    "action_cost": (0, 1e6, "weight of |y|^2 in every arm's objective"),
    "target": (-100, 100, "the target's value in the signal coordinates"),
    "utility_scale": (1e-6, 1e6, "the best possible utility"),
    "utility_sharpness": (1e-6, 1e3, "how fast the utility falls with squared distance from the target"),
}


def setting(name: str, default: float) -> Any:
    """The pydantic field of a setting that all games have, with this game's default."""
    low, high, meaning = _SETTINGS[name]
    return real(default, low, high, meaning)


def dimensions(default: int) -> Any:
    """The pydantic field `dimensions`."""
    return whole(default, 1, 10_000, "length d of an action")


class Settings(Parameters):
    """Base of the games' settings; a game declares the fields, with defaults of its own."""

    if TYPE_CHECKING:  # pydantic would take an annotation for a field
        seeds: Seeds
        arms: tuple[str, ...]
        dimensions: int
        signal_dimensions: int
        target: float
        utility_scale: float
        utility_sharpness: float

    def landscape(self) -> Landscape:
        """The true utility: a bell around t = (target, ..., target, 0, ..., 0), with the signal coordinates first."""
        signal = np.arange(self.dimensions) < self.signal_dimensions
        return Bell(self.target * signal, self.utility_scale, self.utility_sharpness)


@dataclass(frozen=True)
class Result:
    """What a game's `simulate` returns. Axes: iterations, arms, seeds.

    Attributes
    ----------
    config : Settings
        The settings that made it.
    utility, reward, signal, noise : arrays (iterations, arms, seeds)
        U(y) and the RM's reward at the policy's action, or mean action, y; the norms of y's signal and noise
        coordinates. NaN from the iteration of a divergence on.
    diverged_at : int array (arms, seeds)
        The iteration at which the run exceeded `DIVERGED`, or -1.
    keep : tuple of int
        The iterations at which action and RM were kept.
    actions : array (keep, arms, seeds, d)
        y there.
    reward_models : array (keep, arms, seeds, d), or list of (weight, bias) with these leading axes
        The RM there.
    seconds : float
        Wall time of the game, over all calls that an interrupted one took.
    """

    config: Any
    utility: np.ndarray
    reward: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    diverged_at: np.ndarray
    keep: tuple[int, ...]
    actions: np.ndarray
    reward_models: Any
    seconds: float

    def of(self, arm: str, what: str = "utility") -> np.ndarray:
        """One arm's part of a record: (iterations, seeds), or (keep, seeds, d) for what has coordinates."""
        return getattr(self, what)[:, self.config.arms.index(arm)]

    def by_arm_and_seed(self, values: np.ndarray) -> dict[str, dict[str, float]]:
        """Values of shape (arms, seeds) as an object arm -> seed -> number."""
        seeds = [str(seed) for seed in self.config.seeds]
        return {arm: dict(zip(seeds, row, strict=True)) for arm, row in zip(self.config.arms, values, strict=True)}

    def peak(self) -> np.ndarray:
        """The highest utility of each run, (arms, seeds)."""
        return np.nanmax(self.utility, axis=0)


def iterations_kept(keep: Sequence[int], last: int) -> tuple[int, ...]:
    """`keep` as a tuple.

    Raises
    ------
    ValueError
        If it holds an iteration twice, or one outside 0 to `last`.
    """
    keep = tuple(keep)
    if any(not 0 <= t <= last for t in keep) or len(set(keep)) < len(keep):
        raise ValueError(f"keep = {list(keep)}: must be distinct whole numbers from 0 to {last}")
    return keep


def first_actions(start: Any, arms: int, seeds: int, d: int) -> np.ndarray:
    """Where the policies start, (arms, seeds, d): at 0, or at `start`, broadcast from (d,), (seeds, d) or all.

    Raises
    ------
    ValueError
        If `start` has another shape, or holds what is not a finite number.
    """
    y = np.asarray(0.0 if start is None else start, dtype=float)
    if y.ndim and y.shape not in ((d,), (seeds, d), (arms, seeds, d)) or not np.isfinite(y).all():
        shapes = f"({d},), ({seeds}, {d}) or ({arms}, {seeds}, {d})"
        raise ValueError(f"start of shape {y.shape}: must be finite numbers of shape {shapes}")
    return np.broadcast_to(y, (arms, seeds, d)).copy()


def mark_lost(size: Array, diverged_at: Array, t: int) -> Array:
    """Which runs are beyond `DIVERGED` at iteration t: a mask of `size`'s shape.

    Those that were not before are marked in `diverged_at`, in place. `size` is the largest number that matters in each
    run. A comparison with NaN is false: such a run is lost too.
    """
    lost = ~(size <= DIVERGED)
    diverged_at[lost & (diverged_at < 0)] = t
    return lost
