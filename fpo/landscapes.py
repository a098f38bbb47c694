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
        exponent = -self.sharpness * squared_distance
        return self.scale * (exponent.exp() if hasattr(exponent, "exp") else np.exp(exponent))


def _like(y: Array, values: Array) -> Array:
    if not hasattr(y, "new_tensor"):  # a NumPy array
        return np.asarray(values)
    return values.to(y) if hasattr(values, "new_tensor") else y.new_tensor(values)
