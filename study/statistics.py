"""What runs in several seeds say of the differences between conditions.

Every seed is a block that holds each condition once (a randomised block design). What a seed does to all
conditions drops out of every difference; the mean square of the residuals, with (k - 1)(n - 1) degrees of
freedom for k conditions and n seeds, is the variance of a single run. Intervals are corrected for the number
of comparisons by Bonferroni's inequality.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Blocks:
    """Figures of a test: one row per condition, one column per seed."""

    conditions: Sequence[str]
    values: np.ndarray

    @property
    def seeds(self) -> int:
        """Number of blocks."""
        return self.values.shape[1]

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the residuals."""
        return (len(self.conditions) - 1) * (self.seeds - 1)

    @property
    def deviation(self) -> float:
        """Of a single run, once the effects of its condition and of its seed are taken out."""
        means = self.values.mean(axis=1, keepdims=True) + self.values.mean(axis=0) - self.values.mean()
        return math.sqrt(((self.values - means) ** 2).sum() / self.freedom)

    def mean(self, condition: str) -> float:
        """Over the seeds."""
        return float(self.values[self.conditions.index(condition)].mean())

    def gain(self, condition: str, base: str, comparisons: int) -> tuple[float, float]:
        """Mean difference of two conditions, and half the width of its corrected 95 % interval."""
        error = self.deviation * math.sqrt(2 / self.seeds)
        width = stats.t.ppf(1 - LEVEL / 2 / comparisons, self.freedom) * error
        return self.mean(condition) - self.mean(base), float(width)

    def gain_of_all(self, bases: Sequence[str], base: str, comparisons: int) -> tuple[float, float]:
        """The same for the mean of all conditions that are not in `bases`, over `base`."""
        others = [name for name in self.conditions if name not in bases]
        error = self.deviation * math.sqrt((1 + 1 / len(others)) / self.seeds)
        width = stats.t.ppf(1 - LEVEL / 2 / comparisons, self.freedom) * error
        return float(np.mean([self.mean(name) for name in others]) - self.mean(base)), float(width)


def detectable(deviation: float, conditions: int, seeds: int, comparisons: int) -> float:
    """The difference between two conditions that such a study finds with a probability of POWER."""
    freedom, error = (conditions - 1) * (seeds - 1), deviation * math.sqrt(2 / seeds)
    threshold = stats.t.ppf(1 - LEVEL / 2 / comparisons, freedom)

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(threshold, freedom, shift)) - POWER

    return float(optimize.brentq(lacking, 0, 10 * threshold)) * error
