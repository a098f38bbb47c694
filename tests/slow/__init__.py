"""Slow and obvious references, written from the equations. Each is a check of, and the baseline for, a fast route."""

import numpy as np


def differences(function, y, step, central=False):
    """Finite differences, one coordinate at a time."""
    g = np.zeros_like(y)
    for i in range(len(y)):
        move = np.zeros_like(y)
        move[i] = step
        back = move if central else 0 * move
        g[i] = (function(y + move) - function(y - back)) / (2 * step if central else step)
    return g
