"""Time against accuracy: every network that a choice of precisions looked at."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nrt.drawing.scatter import Dot, scatter_to_svg
from nrt.errors import ExportError

if TYPE_CHECKING:
    import pandas

__all__ = ["Frontier", "Point"]


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        name: what it is: ``int8``, ``fp16``, ``fp32`` for one precision wherever it can be,
            ``fastest`` for the least time, ``raised 5`` for five layers given more precision than
            that.
        seconds: of its tasks; None where nothing could be said.
        measured: whether those are measured, and not estimated.
        accuracy: the metric; None where no budget asked for it.
        holds: whether it is within the budget.
        counts: precision -> number of layers with products that have it.
        raised: the layers that the budget gave more precision.
        single: whether it has one precision wherever that can be.
    """

    name: str
    seconds: float | None
    measured: bool
    accuracy: float | None
    holds: bool
    counts: dict[str, int]
    raised: tuple[str, ...] = ()
    single: bool = False

    def __str__(self) -> str:
        parts = [self.name, _time(self.seconds, measured=self.measured)]
        if self.accuracy is not None:
            parts.append(f"{self.accuracy:.4g}{'' if self.holds else ' (beyond the budget)'}")
        parts.append(", ".join(f"{n} {p}" for p, n in self.counts.items()))
        return ": ".join([parts[0], "; ".join(filter(None, parts[1:]))])


@dataclass(frozen=True)
class Frontier:
    """All networks of one choice, the fastest first.

    Attributes:
        network: the model's name.
        metric: of the accuracy, with its bound; empty without a budget.
        smaller_is_better: whether the metric is an error.
        points: the networks.
        chosen: index of the one that was built.
    """

    network: str
    metric: str
    smaller_is_better: bool
    points: tuple[Point, ...]
    chosen: int

    @property
    def pareto(self) -> tuple[Point, ...]:
        """The points that no other one beats in both time and accuracy, the fastest first."""
        found: list[Point] = []
        for point in self.points:
            if point.accuracy is None or point.seconds is None or math.isnan(point.accuracy):
                continue
            if not found or self._better(point, found[-1]):
                found.append(point)
        return tuple(found)

    def _better(self, a: Point, b: Point) -> bool:
        assert a.accuracy is not None
        assert b.accuracy is not None
        return a.accuracy < b.accuracy if self.smaller_is_better else a.accuracy > b.accuracy

    def __str__(self) -> str:
        head = f"{self.network}: {self.metric or 'no accuracy asked for'}"
        return "\n".join(
            [head, *(f"{'*' if k == self.chosen else ' '} {p}" for k, p in enumerate(self.points))]
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, with the names of the attributes; times in seconds."""
        return asdict(self)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per point, with a column per precision that counts its layers.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError(
                "to_pandas() needs pandas, which is not installed: pip install pandas; "
                "to_data() gives the same without it"
            ) from error
        kinds = dict.fromkeys(kind for point in self.points for kind in point.counts)
        return pandas.DataFrame(
            {
                "name": point.name,
                "seconds": point.seconds,
                "measured": point.measured,
                "accuracy": point.accuracy,
                "holds": point.holds,
                "chosen": index == self.chosen,
                **{kind: point.counts.get(kind, 0) for kind in kinds},
            }
            for index, point in enumerate(self.points)
        )

    def to_svg(self) -> str:
        """Time to the right, accuracy upwards; the chosen network is filled, a line joins what no
        other one beats."""
        best = set(map(id, self.pareto))
        dots = [
            Dot(
                x=point.seconds * 1e6,
                y=point.accuracy,
                text=point.name,
                kind="compute" if index == self.chosen else "view",
                joined=id(point) in best,
                tooltip=str(point),
            )
            for index, point in enumerate(self.points)
            if point.seconds is not None
            and point.accuracy is not None
            and math.isfinite(point.accuracy)
        ]
        return scatter_to_svg(
            f"precisions of {self.network}", dots, "microseconds", self.metric or "accuracy"
        )

    def _repr_svg_(self) -> str:
        return self.to_svg()


def _time(seconds: float | None, *, measured: bool) -> str:
    if seconds is None:
        return "not timed"
    return f"{seconds * 1e6:.1f} us{'' if measured else ' estimated'}"
