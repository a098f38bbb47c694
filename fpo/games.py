"""What the records of the controlled games have in common."""

import numpy as np


class ByArm:
    """Access by arm to records whose axes begin (time, arms, seeds); the class brings a `config` with both."""

    def of(self, arm: str, what: str = "utility") -> np.ndarray:
        """One arm's part of a record: (time, seeds), or (time, seeds, d) for what has coordinates."""
        return getattr(self, what)[:, self.config.arms.index(arm)]

    def by_arm_and_seed(self, values: np.ndarray) -> dict[str, dict[str, float]]:
        """Values of shape (arms, seeds) as an object arm -> seed -> number."""
        seeds = [str(seed) for seed in self.config.seeds]
        return {arm: dict(zip(seeds, row, strict=True)) for arm, row in zip(self.config.arms, values, strict=True)}
