"""Two plans against each other, by measurements that take turns.

What drifts while one measures, such as the clock's frequency or another program's load, meets both
plans of a round alike. So the difference is taken round by round, and the median of the differences
is known far better than either latency.

A confidence interval of a median needs no shape of a distribution: of n independent samples, the
number below the true median is binomial (n, 1/2), so that two order statistics enclose it with a
probability that can be counted (H. A. David, H. N. Nagaraja, Order Statistics, 3rd edition, 2003,
section 7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nrt.errors import InputError
from nrt.runtime.context import Context
from nrt.runtime.timing import measure, noise_inputs, sample

__all__ = ["CONFIDENCE", "Estimate", "Paired", "Stopwatch", "estimate", "interleave"]

CONFIDENCE = 0.95
"""Probability with which an interval holds the true median, at least."""
FEWEST = 9
"""Rounds; of 5 samples or fewer, even the least and the greatest enclose it less often."""
_TAIL = Fraction(1, 40)
"""Probability at either side of an interval."""
_ROUNDS = 40
_REPLAYS = 200


@dataclass(frozen=True)
class Estimate:
    """A median and its confidence interval, in seconds."""

    median: float
    low: float
    high: float

    def to_data(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """What `interleave` found.

    Attributes:
        first, second: seconds of one run.
        difference: ``second`` minus ``first``, taken round by round.
        rounds: how many there were.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    rounds: int


def estimate(samples: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    """The median of ``samples`` and its interval: the narrowest symmetric pair of order statistics.

    Fewer than 6 samples cannot reach the confidence: then the least and the greatest are given.

    Raises:
        InputError: there are none.
    """
    if len(samples) == 0:
        raise InputError("no sample to take a median of")
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    rank = _rank(len(ordered))
    return Estimate(float(np.median(ordered)), float(ordered[rank]), float(ordered[-1 - rank]))


def _rank(count: int) -> int:
    """Samples to leave out at either end."""
    # Of the 2^count equally likely orders, `below` have at most `rank` samples under the median.
    rank, ways, below, orders = 0, 1, 1, 1 << count
    while True:
        ways = ways * (count - rank) // (rank + 1)
        below += ways
        if below * _TAIL.denominator > _TAIL.numerator * orders:
            return rank
        rank += 1


class Stopwatch:
    """A context that is warm, and what one run of it takes.

    Attributes:
        context: nobody else uses it meanwhile.
        inputs: of every run.
        seconds: of one run, roughly.
    """

    def __init__(self, context: Context, warm_up: float = 0.2) -> None:
        self.context = context
        self.inputs = noise_inputs(context)
        measure(context, duration=0.0, warm_up=warm_up, inputs=self.inputs)
        self.seconds = max(float(np.median(sample(context, self.inputs, 3))), 1e-7)

    def turn(self, repeats: int) -> float:
        """Median seconds of ``repeats`` runs."""
        return float(np.median(sample(self.context, self.inputs, repeats)))


def interleave(first: Stopwatch, second: Stopwatch, duration: float) -> Paired:
    """Measure both in turns for about ``duration`` seconds, at least 9 rounds.

    Raises:
        InputError: ``duration`` is negative.
    """
    if duration < 0:
        raise InputError(f"duration {duration} s: expected 0 or more")
    both = first.seconds + second.seconds
    rounds = max(FEWEST, min(_ROUNDS, int(duration / both)))
    repeats = max(1, min(_REPLAYS, int(duration / (rounds * both))))
    times = np.empty((rounds, 2))
    for number in range(rounds):
        # Who comes first may be at an advantage: they take turns in that too.
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for index in order:
            times[number, index] = (first, second)[index].turn(repeats)
    return Paired(
        estimate(times[:, 0]),
        estimate(times[:, 1]),
        estimate(times[:, 1] - times[:, 0]),
        rounds,
    )
