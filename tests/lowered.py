"""What tests of lowering look at: its tasks, and which one computes a value."""

from __future__ import annotations

from small_graphs import Maker, operands, run_tasks, worst_error

from nrt.ir.evaluate import evaluate
from nrt.ir.value import Value
from nrt.lowering import Lowered, Task, lower

# The same references on the same data; only transposed products round differently.
TOLERANCE = 1e-5

__all__ = ["lowered", "ops", "task_of"]


def lowered(maker: Maker) -> Lowered:
    """Lower and check that the tasks compute what the graph says."""
    result = lower(maker.graph)
    data = operands(maker)
    assert worst_error(run_tasks(result, data), evaluate(maker.graph, data)) <= TOLERANCE
    return result


def ops(result: Lowered) -> list[str]:
    return [task.problem.op.name for task in result.tasks]


def task_of(result: Lowered, value: Value) -> Task:
    (found,) = [t for t in result.tasks if t.name == value.producer.name]  # type: ignore[union-attr]
    return found
