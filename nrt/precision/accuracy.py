"""How accurate a network must be, and how accurate one is.

A budget is judged on what the whole network gives on the user's data, never on sums of layers'
errors: `Judge` runs the network in fp32 once, and then each network that it is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import BuildError
from nrt.ir.op import Array
from nrt.plan import IoSpec
from nrt.quantization.data import InputShapes, Item, batches, items
from nrt.runtime.arrays import laid_out

__all__ = ["METRICS", "AccuracyBudget", "Judge", "Outputs", "Run", "Score", "fed"]

METRICS = ("sqnr", "relative_error")
"""Built-in metrics."""

Outputs = Mapping[str, Array]
"""Name -> the results of all samples, joined along the first dimension."""

Run = Callable[[Item], Mapping[str, Any]]
"""Inputs by name -> outputs by name."""

_BOUNDS = ("at_least", "at_most", "max_drop")


@dataclass(frozen=True)
class AccuracyBudget:
    """The accuracy that a network must keep, on data of the user's.

    ::

        nrt.AccuracyBudget("sqnr", at_least=20.0, data=images)
        nrt.AccuracyBudget("relative_error", at_most=0.01, data=images)
        nrt.AccuracyBudget(top1, max_drop=0.005, data=images, labels=labels)

    Exactly one bound is given:

    - ``sqnr``: 10 log10(‖fp32‖² / ‖output - fp32‖²) in dB, over all elements of an output; bound by
      ``at_least``.
    - ``relative_error``: ‖output - fp32‖ / ‖fp32‖; bound by ``at_most``. ``max_drop`` is the same:
      the network in fp32 has none.
    - a function of (outputs, labels), larger is better: bound by ``at_least``, or by ``max_drop``,
      what may be lost of its value in fp32. ``outputs`` is the array of all samples, or with
      several outputs a mapping from name to array; ``labels`` are what is given here, None by
      default.

    With several outputs the built-in metrics take the worst. A network that gives NaN or infinities
    where fp32 does not never holds a budget.

    Attributes:
        metric: ``sqnr``, ``relative_error`` or a function.
        at_least, at_most, max_drop: the bound.
        data: as for `nrt.calibrate`: samples, or a folder of ``.npy`` and ``.npz`` files.
        labels: for the function.

    Raises:
        BuildError: the metric is unknown, or not exactly one bound that fits it is given.
    """

    metric: str | Callable[[Any, Any], float]
    at_least: float | None = None
    at_most: float | None = None
    max_drop: float | None = None
    data: Any = field(default=None, repr=False)
    labels: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.metric) and self.metric not in METRICS:
            raise BuildError(
                f"accuracy: metric {self.metric!r} is unknown; expected {', '.join(METRICS)} or a "
                "function of (outputs, labels)"
            )
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        able = self._able()
        if len(given) != 1 or given[0] not in able:
            found = ", ".join(given) or "none"
            raise BuildError(
                f"accuracy: bounds of {self.name}: got {found}; give one of {' or '.join(able)}"
            )
        bound = getattr(self, given[0])
        lowest = -math.inf if given[0] == "at_least" else 0.0
        number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if not number or not math.isfinite(bound) or bound < lowest:
            least = "" if given[0] == "at_least" else " of at least 0"
            raise BuildError(f"accuracy: {given[0]}={bound!r}: expected a number{least}")
        if self.data is None:
            raise BuildError(
                "accuracy: data is missing: give samples to judge on, as for nrt.calibrate"
            )

    def _able(self) -> tuple[str, ...]:
        if callable(self.metric):
            return ("max_drop", "at_least")
        return ("at_least",) if self.metric == "sqnr" else ("at_most", "max_drop")

    @property
    def name(self) -> str:
        """The metric's, for reports."""
        if isinstance(self.metric, str):
            return self.metric
        return str(getattr(self.metric, "__name__", type(self.metric).__name__))

    @property
    def smaller_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric == "relative_error"

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.name} at least {self.at_least:g}"
        if self.at_most is not None or self.smaller_is_better:
            return f"{self.name} at most {self.limit(0.0):g}"
        return f"{self.name} at most {self.max_drop:g} below fp32"

    def limit(self, reference: float) -> float:
        """What the metric may be at worst, where it is ``reference`` in fp32."""
        if self.at_least is not None:
            return self.at_least
        if self.at_most is not None:
            return self.at_most
        assert self.max_drop is not None
        return self.max_drop if self.smaller_is_better else reference - self.max_drop


@dataclass(frozen=True)
class Score:
    """One network's accuracy.

    Attributes:
        value: of the metric; NaN where outputs were not finite.
        holds: whether it is within the budget.
    """

    value: float
    holds: bool


class Judge:
    """Runs networks on the budget's data.

    Args:
        budget: what is asked for.
        shapes: of the network's inputs.
        reference: the network in fp32; it runs once.

    Raises:
        CalibrationError: the data does not fit the inputs.
        BuildError: the metric's value in fp32, or what a built-in one compares with, is not finite.
    """

    def __init__(self, budget: AccuracyBudget, shapes: InputShapes, reference: Run) -> None:
        self.budget = budget
        self._batches = list(batches(items(budget.data, list(shapes)), shapes))
        self._reference = self._outputs(reference)
        for name, array in self._reference.items():
            if not callable(budget.metric) and not np.isfinite(array).all():
                raise BuildError(
                    f"accuracy: output '{name}' is not finite in fp32, {budget.name} has no value; "
                    "give a function of (outputs, labels), or other data"
                )
        self.reference = self._value(self._reference)
        """The metric in fp32."""
        if callable(budget.metric) and not math.isfinite(self.reference):
            raise BuildError(
                f"accuracy: {budget.name} is {self.reference} in fp32, expected a finite number"
            )
        self.limit = budget.limit(self.reference)

    def sample(self, count: int) -> list[Item]:
        """The first batches that hold ``count`` samples, or all there are."""
        taken, found = 0, []
        for batch in self._batches:
            if taken >= count:
                break
            found.append(batch)
            taken += max(1, *(np.shape(a)[0] if np.ndim(a) else 1 for a in batch.values()))
        return found

    def score(self, run: Run) -> Score:
        """The accuracy of another network.

        Raises:
            BuildError: the user's function gives no number.
        """
        found = self._outputs(run)
        for name, reference in self._reference.items():
            if np.isfinite(reference).all() and not np.isfinite(found[name]).all():
                return Score(math.nan, False)
        value = self._value(found)
        worse = value > self.limit if self.budget.smaller_is_better else value < self.limit
        return Score(value, not (worse or math.isnan(value)))

    def _outputs(self, run: Run) -> dict[str, Array]:
        parts: dict[str, list[Array]] = {}
        for batch in self._batches:
            for name, array in run(batch).items():
                # Small floats have no arithmetic of their own in NumPy.
                copied = np.array(array)
                wide = copied.astype(np.float32) if copied.dtype.kind in "fV" else copied
                parts.setdefault(name, []).append(np.atleast_1d(wide))
        return {name: np.concatenate(found) for name, found in parts.items()}

    def _value(self, found: Outputs) -> float:
        metric = self.budget.metric
        if isinstance(metric, str):
            ratios = [_noise(found[name], wanted) for name, wanted in self._reference.items()]
            worst = max(ratios)
            if metric == "relative_error":
                return worst
            return math.inf if worst == 0 else -20 * math.log10(worst)
        given = next(iter(found.values())) if len(found) == 1 else dict(found)
        value = metric(given, self.budget.labels)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise BuildError(
                f"accuracy: {self.budget.name} gave {type(value).__name__}, expected a number"
            ) from error


def _noise(found: Array, wanted: Array) -> float:
    """‖found - wanted‖ / ‖wanted‖ in float64."""
    signal = float(np.linalg.norm(wanted.astype(np.float64)))
    noise = float(np.linalg.norm(found.astype(np.float64) - wanted.astype(np.float64)))
    if noise == 0:
        return 0.0
    return noise / signal if signal else math.inf


def fed(specs: Sequence[IoSpec], batch: Item) -> dict[str, Array]:
    """``batch`` in the types and memory orders of a plan's inputs."""
    return {
        spec.name: laid_out(
            spec, np.asarray(batch[spec.name]).astype(dtype_from_name(spec.dtype).numpy)
        )
        for spec in specs
    }
