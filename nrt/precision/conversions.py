"""The conversions that edges between precisions need, as problems to be timed like any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations

from nrt.dtypes import INT8, DType, dtype_from_name
from nrt.ir.graph import Graph
from nrt.ir.ops import Dequantize, Pointwise, Reformat
from nrt.ir.value import NHWC, Layout, Value
from nrt.lowering import Task
from nrt.precision.costs import floats_of
from nrt.precision.survey import Survey
from nrt.problem import Problem, TensorSpec

__all__ = ["Conversions"]


class Conversions:
    """Tasks per value and pair of types.

    Args:
        survey: the links between layers.
        layouts: memory order of a value, by its name.

    Attributes:
        dequantize: (value, type) -> the task of a reader of that type where int8 is stored.
        casts: (value, type that it has, wanted type) -> task.
    """

    def __init__(self, survey: Survey, layouts: Mapping[str, Layout | None]) -> None:
        kinds = list(dict.fromkeys(floats_of(p, "") for p in (*survey.floats, "fp32")))
        self.dequantize: dict[tuple[str, str], Task] = {}
        self.casts: dict[tuple[str, str, str], Task] = {}
        for link in survey.shared:
            layout = layouts.get(link.value.name)
            for kind in kinds:
                task = _dequantize(link.value, layout, dtype_from_name(kind))
                self.dequantize[link.value.name, kind] = task
        for link in survey.between:
            layout = layouts.get(link.value.name)
            for have, want in permutations(kinds, 2):
                types = dtype_from_name(have), dtype_from_name(want)
                self.casts[link.value.name, have, want] = _cast(link.value, layout, *types)

    @property
    def tasks(self) -> list[Task]:
        """All of them."""
        return [*self.dequantize.values(), *self.casts.values()]

    @staticmethod
    def layouts_of(graph: Graph, values: Iterable[Value]) -> dict[str, Layout | None]:
        """How ``graph``, an outcome of all passes, orders what became of ``values``."""
        known = {value.name: value.layout for value in graph.values}
        return {v.name: known.get(v.name, NHWC if len(v.shape) == 4 else None) for v in values}


def _dequantize(value: Value, layout: Layout | None, dtype: DType) -> Task:
    program = Dequantize(dtype).program(("i", "f"))
    specs = (
        TensorSpec.dense(value.shape, INT8, layout),
        TensorSpec.dense((), dtype_from_name("fp32")),
    )
    result = TensorSpec.dense(value.shape, dtype, layout)
    problem = Problem(Pointwise(program, dtype), specs, (result,), (False, True))
    return Task(f"{value.name}: int8 to {dtype}", (), problem, (), ())


def _cast(value: Value, layout: Layout | None, have: DType, want: DType) -> Task:
    source = TensorSpec.dense(value.shape, have, layout)
    result = TensorSpec.dense(value.shape, want, layout)
    problem = Problem(Reformat(want), (source,), (result,), (False,))
    return Task(f"{value.name}: {have} to {want}", (), problem, (), ())
