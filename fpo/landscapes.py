"""True utilities U of the controlled games, with their gradients, for NumPy arrays and torch tensors alike.

What is returned has the kind, precision and device of the points that are asked about.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

# A NumPy array or a torch tensor. Torch itself is not imported: it takes seconds to load, and the linear game does
# without.
Array = Any


class Landscape(Protocol):
    """What a game asks of a true utility: a game whose settings make another one is another game, and nothing else."""

    def __call__(self, y: Array) -> Array:
        """U(y) for y of shape (..., d): shape (...)."""
        ...

    def gradient(self, y: Array) -> Array:
        """grad U(y), shape of y."""
        ...

    def moved(self, y: Array, step: float) -> Array:
        """U(y + step e_i) for every coordinate i: shape of y."""
        ...

    def like(self, y: Array) -> "Landscape":
        """The same with constants of y's kind, precision and device, which are then not converted at every call."""
        ...


@dataclass(frozen=True, eq=False)
class Bell:
    """U(y) = scale * exp(-sharpness * |y - center|^2) (Gauthier et al. 2026, both controlled environments).

    Attributes
    ----------
    center : array or tensor (d,)
        The action that people like best.
    scale : float
        Its utility.
    sharpness : float
        How fast the utility falls with squared distance from it.

    Examples
    --------
    >>> U = Bell(np.array([1.0, 0.0]), scale=10.0, sharpness=0.5)
    >>> float(U(np.array([1.0, 0.0]))), U.gradient(np.array([1.0, 0.0])).tolist()
    (10.0, [-0.0, -0.0])
    """

    center: Array
    scale: float
    sharpness: float

    def __call__(self, y: Array) -> Array:
        """U(y) for y of shape (..., d): shape (...)."""
        away = y - _like(y, self.center)
        return self._at((away * away).sum(-1))

    def gradient(self, y: Array) -> Array:
        """grad U(y) = -2 sharpness U(y) (y - center), shape of y."""
        return -2 * self.sharpness * self(y)[..., None] * (y - _like(y, self.center))

    def moved(self, y: Array, step: float) -> Array:
        """U(y + step e_i) for every coordinate i, shape of y; the d moved points are never made."""
        away = y - _like(y, self.center)
        return self._at((away * away).sum(-1)[..., None] + 2 * step * away + step * step)

    def like(self, y: Array) -> "Bell":
        """The same with a center of y's kind, precision and device, which is then not converted at every call."""
        return replace(self, center=_like(y, self.center))

    def _at(self, squared_distance: Array) -> Array:
        return self.scale * _exp(-self.sharpness * squared_distance)


@dataclass(frozen=True, eq=False)
class Stretched:
    """U(y) = scale * exp(-sum_i sharpness_i (y_i - center_i)^2): a bell that falls faster in some coordinates.

    Attributes
    ----------
    center, sharpness : arrays or tensors (d,)
        The action that people like best, and how fast the utility falls along each coordinate.
    scale : float
        Its utility.

    Examples
    --------
    >>> U = Stretched(np.zeros(2), 10.0, np.array([0.5, 2.0]))
    >>> U.gradient(np.array([0.0, 0.0])).tolist(), float(U(np.array([2.0, 0.0])) / U(np.array([0.0, 1.0])))
    ([-0.0, -0.0], 1.0)
    """

    center: Array
    scale: float
    sharpness: Array

    def __call__(self, y: Array) -> Array:
        """U(y) for y of shape (..., d): shape (...)."""
        away = y - _like(y, self.center)
        return self.scale * _exp(-(_like(y, self.sharpness) * away * away).sum(-1))

    def gradient(self, y: Array) -> Array:
        """grad U(y) = -2 U(y) sharpness * (y - center), shape of y."""
        return -2 * self(y)[..., None] * _like(y, self.sharpness) * (y - _like(y, self.center))

    def moved(self, y: Array, step: float) -> Array:
        """U(y + step e_i) for every coordinate i, shape of y; the d moved points are never made."""
        away, sharpness = y - _like(y, self.center), _like(y, self.sharpness)
        squares = (sharpness * away * away).sum(-1)[..., None] + sharpness * (2 * step * away + step * step)
        return self.scale * _exp(-squares)

    def like(self, y: Array) -> "Stretched":
        """The same with constants of y's kind, precision and device, which are then not converted at every call."""
        return replace(self, center=_like(y, self.center), sharpness=_like(y, self.sharpness))


@dataclass(frozen=True, eq=False)
class Peaks:
    """The sum of several utilities.

    Examples
    --------
    >>> U = Peaks((Bell(np.zeros(1), 10.0, 0.2), Bell(np.array([3.0]), 4.0, 0.7)))
    >>> bool(U(np.array([3.0])) == 10 * np.exp(-1.8) + 4)
    True
    """

    parts: tuple[Landscape, ...]

    def __call__(self, y: Array) -> Array:
        """U(y) for y of shape (..., d): shape (...)."""
        return sum(part(y) for part in self.parts)

    def gradient(self, y: Array) -> Array:
        """grad U(y), shape of y."""
        return sum(part.gradient(y) for part in self.parts)

    def moved(self, y: Array, step: float) -> Array:
        """U(y + step e_i) for every coordinate i, shape of y."""
        return sum(part.moved(y, step) for part in self.parts)

    def like(self, y: Array) -> "Peaks":
        """The same with constants of y's kind, precision and device, which are then not converted at every call."""
        return Peaks(tuple(part.like(y) for part in self.parts))


@dataclass(frozen=True, eq=False)
class Biased:
    """What an oracle that errs says of a utility: U(y) + level + <tilt, y>.

    `level` has a shape that U(y) can be added to, and `tilt` one that y can be multiplied with.

    Examples
    --------
    >>> V = Biased(Bell(np.zeros(2), 10.0, 0.2), 1.0, np.array([0.0, 0.5]))
    >>> float(V(np.zeros(2))), V.gradient(np.zeros(2)).tolist()
    (11.0, [0.0, 0.5])
    """

    utility: Landscape
    level: Array
    tilt: Array

    def __call__(self, y: Array) -> Array:
        """U(y) + level + <tilt, y> for y of shape (..., d): shape (...)."""
        return self.utility(y) + _like(y, self.level) + (_like(y, self.tilt) * y).sum(-1)

    def gradient(self, y: Array) -> Array:
        """grad U(y) + tilt, shape of y."""
        return self.utility.gradient(y) + _like(y, self.tilt)

    def moved(self, y: Array, step: float) -> Array:
        """The same at y + step e_i for every coordinate i, shape of y."""
        tilt = _like(y, self.tilt)
        added = _like(y, self.level) + (tilt * y).sum(-1)
        return self.utility.moved(y, step) + added[..., None] + step * tilt

    def like(self, y: Array) -> "Biased":
        """The same with constants of y's kind, precision and device, which are then not converted at every call."""
        return Biased(self.utility.like(y), _like(y, self.level), _like(y, self.tilt))


def _exp(exponent: Array) -> Array:
    return exponent.exp() if hasattr(exponent, "exp") else np.exp(exponent)


def _like(y: Array, values: Array) -> Array:
    if not hasattr(y, "new_tensor"):  # a NumPy array
        return np.asarray(values)
    return values.to(y) if hasattr(values, "new_tensor") else y.new_tensor(values)
