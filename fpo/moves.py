"""The neural game's true utility and where its policies start, at home and moved.

With the target t = (target, ..., target, noise_target, ..., noise_target), the signal coordinates first, and k_i the
sharpness of coordinate i, the utility of an action y is

    U(y) = utility_scale * exp(-sum_i k_i (y_i - t_i)^2),     k_i = utility_sharpness * sharpness_factors_i,

plus, with `second_peak`, a lower and narrower bell. The RM sees y + offset, and here as in the game this is what is
called the action. By default U is a bell of the game's own around (target, ..., target, 0, ..., 0).
"""

from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fpo import games
from fpo.landscapes import Bell, Landscape, Peaks, Stretched
from fpo.parameters import Signal, as_tuple, real, signal

# The second peak: utility, sharpness, and its place in the first two coordinates.
SECOND = (4.0, 0.7, (1.5, -1.5))
Factor = Annotated[float, Field(strict=True, ge=1e-3, le=1e3, allow_inf_nan=False)]


class Settings(games.Settings):
    """What a game's settings say of U and of the start; the defaults are the paper's neural environment's."""

    dimensions: int = games.dimensions(10)
    signal_dimensions: Signal = signal(2)
    target: float = games.setting("target", 2.5)
    utility_scale: float = games.setting("utility_scale", 10.0)
    utility_sharpness: float = games.setting("utility_sharpness", 0.2)
    offset: float = real(0.0, -100, 100, "added to every coordinate of an action before the RM sees it")
    start_distance: float = real(0.0, 0, 100, "of the policy's start from 0, in a noise direction of each seed's own")
    noise_target: float = real(0.0, -100, 100, "the target's value in the noise coordinates")
    sharpness_factors: Annotated[tuple[Factor, ...], BeforeValidator(as_tuple)] = Field(
        (),
        strict=False,
        description="by which the sharpness of each coordinate differs; empty: all 1",
        json_schema_extra={"allowed": "an empty list, or one of `dimensions` finite numbers from 1e-3 to 1000"},
    )
    second_peak: bool = Field(False, description="whether U has a second, lower and narrower peak: see `SECOND`")

    @field_validator("sharpness_factors")
    @classmethod
    def _each(cls, value: tuple, info: ValidationInfo) -> tuple:
        if value and len(value) != info.data.get("dimensions", len(value)):
            raise ValueError("not one for each coordinate")
        return value

    @field_validator("second_peak")
    @classmethod
    def _room(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("dimensions", 2) < 2:
            raise ValueError("a line has no room for it")
        return value

    def landscape(self) -> Landscape:
        """The true utility of what the RM sees, which is the action plus `offset`."""
        signal = np.arange(self.dimensions) < self.signal_dimensions
        center = np.where(signal, self.target, self.noise_target) + self.offset
        first: Landscape = Bell(center, self.utility_scale, self.utility_sharpness)
        if self.sharpness_factors:
            first = Stretched(center, self.utility_scale, self.utility_sharpness * np.array(self.sharpness_factors))
        if not self.second_peak:
            return first
        scale, sharpness, place = SECOND
        peak = self.offset + np.pad(place, (0, self.dimensions - len(place)))
        return Peaks((first, Bell(peak, scale, sharpness)))

    def start(self) -> np.ndarray:
        """Where the policies of the seeds start, (seeds, d), as the RM sees it."""
        away = np.zeros((len(self.seeds), self.dimensions))
        if self.start_distance and self.signal_dimensions < self.dimensions:
            for row, seed in zip(away, self.seeds, strict=True):
                # Not of torch's stream, whose numbers stay those of the game that starts at 0.
                way = np.random.RandomState(seed).normal(size=self.dimensions - self.signal_dimensions)
                row[self.signal_dimensions :] = self.start_distance * way / np.linalg.norm(way)
        return self.offset + away
