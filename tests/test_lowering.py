"""Lowering: what is a view, what is copied, who writes where; and that it computes the graph."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from lowered import lowered, ops, task_of
from small_graphs import Maker, Recipe, feeds, make, recipes, run_tasks, worst_error

from nrt.dtypes import FP16, FP32
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import (
    Concat,
    Conv,
    Dropout,
    Expand,
    Identity,
    MatMul,
    Reformat,
    Relu,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.text import to_text
from nrt.ir.value import NHWC
from nrt.lowering import lower
from nrt.problem import TensorSpec, dense_strides
from nrt.strides import reshaped_strides

# The same references on the same data; only transposed products round differently.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes)
def test_tasks_compute_the_graph(recipe: Recipe) -> None:
    seed = secrets.randbits(32)
    note(f"seed {seed}")
    graph = make(recipe, seed)
    note(to_text(graph))
    data = feeds(graph, np.random.default_rng(seed))
    found, wanted = run_tasks(lower(graph), data), evaluate(graph, data)
    kind = "fp16" if any(v.dtype is FP16 for v in graph.values) else "fp32"
    assert worst_error(found, wanted) <= TOLERANCE[kind]


@st.composite
def strided(draw: st.DrawFn) -> tuple[TensorSpec, tuple[int, ...]]:
    """A tensor of permuted, padded and repeated dimensions, and a shape of its size."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=5)))
    order = draw(st.permutations(range(len(shape)))) if draw(st.booleans()) else range(len(shape))
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= shape[dim] * draw(st.sampled_from([1, 1, 1, 2]))
        if draw(st.integers(0, 7)) == 0:
            strides[dim] = 0
    left = math.prod(shape)
    new = []
    while left > 1:
        new.append(draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0])))
        left //= new[-1]
    for _ in range(draw(st.integers(0, 2))):
        new.insert(draw(st.integers(0, len(new))), 1)
    return TensorSpec(shape, FP32, tuple(strides)), tuple(new)


@settings(max_examples=500, deadline=None)
@given(strided())
def test_reshape_is_a_view_where_numpy_has_one(case: tuple[TensorSpec, tuple[int, ...]]) -> None:
    spec, shape = case
    memory = np.arange(max(spec.span, 1), dtype=np.float32)
    array = np.lib.stride_tricks.as_strided(memory, spec.shape, [4 * s for s in spec.strides])
    try:
        wanted = np.reshape(array, shape, copy=False)
    except ValueError:
        wanted = None
    strides = reshaped_strides(spec, shape)
    if strides is None:
        assert wanted is None
        return
    view = np.lib.stride_tricks.as_strided(memory, shape, [4 * s for s in strides])
    np.testing.assert_array_equal(view, array.reshape(shape))
    assert wanted is not None


def test_reshape_of_an_empty_tensor_is_dense() -> None:
    assert reshaped_strides(TensorSpec((2, 0, 3), FP32, (7, 3, 1)), (0, 5)) == dense_strides((0, 5))


# -- views -----------------------------------------------------------------------------------------


def test_views_in_a_chain_cost_no_task() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 2, 8, 3, 4))
    y = m.op(Reshape((2, 8, 12)), x)
    y = m.op(Identity(), m.op(Dropout(), y))
    y = m.op(Reshape((4, 1, 48)), y)
    m.out("y", m.op(Relu(), m.op(Transpose((1, 0, 2)), y)))
    result = lowered(m)
    assert ops(result) == ["Relu", "Relu"]
    first, second = result.tasks
    assert second.inputs[0].buffer is first.outputs[0].buffer
    assert second.inputs[0].spec == TensorSpec.dense((1, 4, 48), FP32)


def test_flatten_of_one_pixel_in_nhwc_is_a_view() -> None:
    m = Maker()
    x = m.nhwc(m.op(Relu(), m.input("x", 3, 8, 1, 1)))
    m.out("y", m.op(Relu(), m.op(Reshape((3, 8)), x)))
    assert ops(lowered(m)) == ["Relu", "Relu"]


def test_flatten_of_an_nhwc_image_is_one_copy() -> None:
    m = Maker()
    x = m.nhwc(m.op(Relu(), m.input("x", 2, 8, 3, 4)))
    m.out("y", m.op(Relu(), m.op(Reshape((2, 96)), x)))
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat", "Relu"]
    copy = result.tasks[1]
    assert copy.inputs[0].spec.is_nhwc
    assert copy.outputs[0].spec.is_row_major


def test_reshape_that_keeps_channels_last_is_a_strided_view() -> None:
    m = Maker()
    x = m.nhwc(m.op(Relu(), m.input("x", 2, 8, 3, 4)))
    m.out("y", m.op(Relu(), m.op(Reshape((2, 8, 12)), x)))
    result = lowered(m)
    assert ops(result) == ["Relu", "Relu"]
    assert result.tasks[1].inputs[0].spec.strides == (96, 1, 8)


def test_transpose_to_channels_last_of_nhwc_is_a_view() -> None:
    m = Maker()
    x = m.nhwc(m.op(Relu(), m.input("x", 2, 8, 3, 4)))
    y = m.op(Transpose((0, 2, 3, 1)), x)
    m.out("y", m.op(Relu(), y))
    result = lowered(m)
    assert ops(result) == ["Relu", "Relu"]
    assert result.tasks[1].inputs[0].spec.is_row_major


def test_transpose_that_moves_elements_is_a_reformat_from_permuted_strides() -> None:
    m = Maker()
    m.out("y", m.op(Relu(), m.op(Transpose((1, 0)), m.op(Relu(), m.input("x", 3, 5)))))
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat", "Relu"]
    assert result.tasks[1].inputs[0].spec == TensorSpec((5, 3), FP32, (1, 5))
    assert result.tasks[1].outputs[0].spec == TensorSpec.dense((5, 3), FP32)


@pytest.mark.parametrize(
    ("start", "tasks"),
    [(0, 0), (4, 0), (3, 1)],  # 64-byte rows: any row is aligned; 12 bytes into a row is not
)
def test_slice_of_leading_rows_is_a_view_where_aligned(start: int, tasks: int) -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 8, 1, 1))
    y = m.op(Slice((start, 0, 0), (8, 1, 1), (1, 1, 1)), x)
    m.out("y", m.op(Relu(), y))
    result = lowered(m)
    assert ops(result).count("Reformat") == tasks
    assert task_of(result, m.graph.outputs["y"]).inputs[0].offset == (0 if tasks else 4 * start)


def test_slice_between_strides_is_copied_from_the_source() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 10))
    m.out("y", m.op(Relu(), m.op(Slice((0, 2), (4, 9), (2, 3)), x)))
    result = lowered(m)
    copy = result.tasks[1]
    assert copy.inputs[0].spec == TensorSpec((2, 3), FP32, (20, 3))
    assert copy.inputs[0].offset == 8


def test_slice_backwards_stays_a_slice() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 5))
    m.out("y", m.op(Slice((3, 0), (-1, 5), (-2, 1)), x))
    assert ops(lowered(m)) == ["Relu", "Slice"]


def test_empty_tensors_cost_no_task_and_stay_inside_their_buffers() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 5))
    empty = m.op(Slice((4, 0), (4, 5), (1, 1)), x)
    m.out("empty", m.op(Relu(), empty))
    m.out("joined", m.op(Concat(0), x, empty))
    m.out("product", m.op(MatMul(trans_a=True), empty, empty))
    result = lowered(m)
    assert ops(result) == ["Relu", "MatMul"]  # the sum of no products is zero, not nothing
    assert result.tasks[1].inputs[0].offset == 0


@pytest.mark.parametrize(
    ("axis", "sizes", "offset", "copies"),
    [
        (0, (1, 3), 32, 0),
        (-1, (4, 4), 16, 0),  # rows keep their pitch
        (-1, (3, 5), 0, 1),  # 12 bytes into a row: not where a wide access may start
    ],
)
def test_pieces_of_a_split_are_views_where_aligned(
    axis: int, sizes: tuple[int, int], offset: int, copies: int
) -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 8))
    for index, value in enumerate(m.add(Split(axis, sizes), x)):
        m.out(f"y{index}", m.op(Relu(), value))
    result = lowered(m)
    assert ops(result).count("Reformat") == copies
    place = task_of(result, m.graph.outputs["y1"]).inputs[0]
    assert place.offset == offset
    assert place.spec.strides[0] == (5 if copies else 8)


def test_rows_that_are_no_whole_vectors_apart_are_copied() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 10))  # 40 bytes
    m.out("y", m.op(Relu(), m.op(Slice((0, 0), (4, 4), (1, 1)), x)))
    assert ops(lowered(m)) == ["Relu", "Reformat", "Relu"]


def test_heads_of_attention_are_views_of_one_product() -> None:
    """GPT-2: Split, Reshape and Transpose of the rows [query | key | value]."""
    m = Maker()
    x = m.op(Relu(), m.input("x", 2, 5, 24))
    heads = []
    for value in m.add(Split(-1, (8, 8, 8)), x):
        head = m.op(Transpose((0, 2, 1, 3)), m.op(Reshape((2, 5, 2, 4)), value))
        m.graph.set_layout(head, (0, 2, 1, 3))
        heads.append(head)
    scores = m.op(MatMul(trans_b=True), heads[0], heads[1])
    m.out("y", m.op(MatMul(), scores, heads[2]))
    result = lowered(m)
    assert ops(result) == ["Relu", "MatMul", "MatMul"]
    assert [p.spec.strides for p in result.tasks[1].inputs] == [(120, 4, 24, 1), (120, 4, 1, 24)]
    assert [p.offset for p in (*result.tasks[1].inputs, result.tasks[2].inputs[1])] == [0, 32, 64]


def test_a_reshape_across_a_gap_is_copied() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 4, 8))
    y = m.op(Reshape((16,)), m.op(Slice((0, 0), (4, 4), (1, 1)), x))
    m.out("y", m.op(Relu(), y))
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat", "Relu"]
    assert result.tasks[1].inputs[0].spec.strides == (8, 1)


def test_producers_write_through_views_to_where_they_are_wanted() -> None:
    """A vision transformer: patches are channels last, transposed to rows, joined with a token."""
    m = Maker()
    x = m.nhwc(m.input("x", 1, 4, 4, 4))
    patches = m.nhwc(m.op(Conv((2, 2)), x, m.const(8, 4, 2, 2)))
    rows = m.op(Reshape((1, 8, 4)), patches)
    m.graph.set_layout(rows, (0, 2, 1))
    rows = m.op(Transpose((0, 2, 1)), rows)
    m.out("y", m.op(Relu(), m.op(Concat(1), m.const(1, 1, 8), rows)))
    result = lowered(m)
    assert ops(result) == ["Conv", "Reformat", "Relu"]
    assert result.tasks[0].outputs[0].buffer is result.tasks[-1].inputs[0].buffer
    assert result.tasks[0].outputs[0].offset == 32
    assert result.tasks[1].problem.constants == (True,)


def test_an_output_behind_a_reshape_is_written_by_its_producer() -> None:
    m = Maker()
    m.out("y", m.op(Reshape((15,)), m.op(Relu(), m.input("x", 3, 5))))
    result = lowered(m)
    assert ops(result) == ["Relu"]
    assert result.tasks[0].outputs[0].buffer.space == "output"


def test_expand_is_a_copy_from_strides_of_zero() -> None:
    m = Maker()
    m.out("y", m.op(Expand((2, 3, 4)), m.op(Relu(), m.input("x", 3, 1))))
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat"]
    assert result.tasks[1].inputs[0].spec == TensorSpec((2, 3, 4), FP32, (0, 1, 0))


def test_reformat_without_a_difference_in_memory_is_a_view() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 2, 1, 3, 4))  # one channel: NHWC is row-major
    y = m.nhwc(m.op(Reformat(FP32), x))
    m.out("y", m.op(Relu(), y))
    result = lowered(m)
    assert ops(result) == ["Relu", "Relu"]
    assert result.tasks[1].inputs[0].spec == TensorSpec.dense((2, 1, 3, 4), FP32, NHWC)


def test_reformat_of_dtype_or_order_is_a_task() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 2, 8, 3, 4))
    half = m.nhwc(m.op(Reformat(FP16), x))
    m.out("y", m.op(Reformat(FP32), half))
    result = lower(m.graph)
    assert ops(result) == ["Relu", "Reformat", "Reformat"]
    assert result.tasks[1].outputs[0].spec == TensorSpec.dense((2, 8, 3, 4), FP16, NHWC)


# -- graph outputs ---------------------------------------------------------------------------------


def test_output_that_is_an_input_a_constant_a_view_or_bound_twice() -> None:
    m = Maker()
    x = m.input("x", 3, 5)
    y = m.op(Relu(), x)
    flat = m.op(Reshape((15,)), y)
    m.out("input", x)
    m.out("constant", m.const(2, 3))
    m.out("view", flat)
    m.out("relu", y)
    m.out("relu again", y)
    m.out("input again", x)
    m.out("turned", m.op(Transpose((1, 0)), y))
    m.out("used", m.op(Relu(), flat))
    result = lowered(m)
    assert [name for name, _ in result.outputs] == list(m.graph.outputs)


def test_channels_last_is_bound_as_it_is() -> None:
    m = Maker()
    x = m.nhwc(m.input("x", 2, 8, 3, 4))
    m.out("y", m.nhwc(m.op(Relu(), x)))
    m.out("same", x)
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat"]
    spec = TensorSpec.dense((2, 8, 3, 4), FP32, NHWC)
    assert result.tasks[0].outputs[0].buffer.space == "output"
    assert result.inputs == [("x", spec)]
    assert result.outputs == [("y", spec), ("same", spec)]


def test_output_in_another_layout_is_written_row_major() -> None:
    m = Maker()
    x = m.op(Relu(), m.input("x", 2, 8, 3, 4))
    m.graph.set_layout(x, (0, 3, 1, 2))
    m.out("y", x)
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat"]
    assert result.tasks[1].outputs[0].buffer.space == "output"
    assert result.outputs == [("y", TensorSpec.dense((2, 8, 3, 4), FP32))]


@pytest.mark.parametrize(
    "op",
    [Transpose((1, 0)), Slice((0, 1), (3, 5), (1, 2)), Reshape((15,)), Expand((2, 3, 5))],
    ids=lambda op: op.name,
)
def test_movement_into_an_output_is_one_copy(op: object) -> None:
    m = Maker()
    m.out("y", m.op(op, m.input("x", 3, 5)))  # type: ignore[arg-type]
    result = lowered(m)
    assert ops(result) == ["Reformat"]
    assert result.tasks[0].outputs[0].buffer.space == "output"


def test_reshape_that_moves_elements_writes_where_its_reader_wants_them() -> None:
    m = Maker()
    x = m.nhwc(m.op(Relu(), m.input("x", 2, 8, 3, 4)))
    m.out("y", m.op(Reshape((2, 96)), x))
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat"]
    assert result.tasks[1].outputs[0].buffer.space == "output"


# -- constants -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        Transpose((1, 0)),
        Slice((1, 3), (4, -1), (2, -1)),
        Reshape((5, 4)),
        Expand((4, 5)),
        Split(0, (4,)),
        Identity(),
        Concat(1),
    ],
    ids=lambda op: op.name,
)
def test_movement_of_a_constant_is_done_at_build_time(op: object) -> None:
    m = Maker()
    m.input("x", 3)
    y = m.op(op, m.const(4, 5))  # type: ignore[arg-type]
    m.out("y", m.op(Relu(), y))
    m.out("moved", y)
    result = lowered(m)
    assert ops(result) == ["Relu", "Reformat"]
    place = result.tasks[0].inputs[0]
    assert place.buffer.array is not None
    assert place.buffer.array.shape == place.spec.shape == y.shape


def test_a_kernel_packs_a_reshaped_constant_in_its_own_shape() -> None:
    m = Maker()
    x = m.input("x", 3, 6)
    w = m.op(Reshape((4, 6)), m.const(2, 12))
    m.out("y", m.op(MatMul(trans_b=True), x, w))
    result = lowered(m)
    assert ops(result) == ["MatMul"]
    assert result.tasks[0].inputs[1].buffer.array.shape == (6, 4)  # type: ignore[union-attr]


# -- products --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_transposed_operands_are_said_by_strides(
    trans_a: bool, trans_b: bool, constant: bool
) -> None:
    m = Maker()
    a = m.op(Relu(), m.input("a", *((2, 5, 3) if trans_a else (2, 3, 5))))
    shape = (4, 5) if trans_b else (5, 4)
    b = m.const(*shape) if constant else m.op(Relu(), m.input("b", *shape))
    m.out("y", m.op(MatMul(trans_a, trans_b), a, b))
    result = lowered(m)
    task = result.tasks[-1]
    assert task.problem.op == MatMul()
    assert task.inputs[0].spec.strides == ((15, 1, 3) if trans_a else (15, 5, 1))
    assert task.inputs[1].spec.shape == (5, 4)
    assert task.inputs[1].spec.strides == ((1, 5) if trans_b and not constant else (4, 1))


def test_a_vector_operand_ignores_its_flag() -> None:
    m = Maker()
    a = m.input("a", 5)
    m.out("y", m.op(MatMul(trans_a=True), a, m.const(5, 4)))
    assert lowered(m).tasks[0].inputs[0].spec.shape == (5,)


# -- names and errors ------------------------------------------------------------------------------


def test_tasks_keep_names_and_origins() -> None:
    m = Maker()
    x = m.input("x", 3, 5)
    node = m.graph.add_node(Transpose((1, 0)), [x], name="turn", origin=["/model/Transpose"])
    m.out("y", node.output)
    (task,) = lower(m.graph).tasks
    assert (task.name, task.origins) == ("turn", ("/model/Transpose",))


def test_tasks_of_one_node_are_numbered() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    m.out("y", m.op(Concat(0), x, m.const(2, 8), x))
    assert [t.name for t in lowered(m).tasks] == ["concat", "concat#1", "concat#2"]


def test_a_value_that_nothing_computes_is_an_error() -> None:
    m = Maker()
    m.out("y", m.op(Relu(), m.input("x", 3)))
    m.graph._inputs.clear()
    with pytest.raises(BuildError, match="value 'x' is read before it is computed"):
        lower(m.graph)
