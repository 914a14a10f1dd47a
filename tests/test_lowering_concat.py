"""Concatenation in lowering: who writes where, what is copied, what lies beside."""

from __future__ import annotations

import pytest
from lowered import lowered, ops, task_of
from small_graphs import Maker

from nrt.ir.ops import (
    Concat,
    Conv,
    Identity,
    MatMul,
    Relu,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.value import NHWC, Value
from nrt.problem import dense_strides

# The same references on the same data; only transposed products round differently.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


def test_producers_write_into_their_slice_of_a_concat() -> None:
    m = Maker()
    x = m.input("x", 2, 3, 4, 4)
    a = m.nhwc(m.op(Conv(), x, m.const(8, 3, 1, 1)))
    b = m.nhwc(m.op(Conv(), x, m.const(4, 3, 1, 1)))
    both = m.nhwc(m.op(Concat(1), a, b))
    m.out("y", m.op(Relu(), both))
    result = lowered(m)
    assert ops(result) == ["Conv", "Conv", "Relu"]
    first, second, last = result.tasks
    assert first.outputs[0].buffer is second.outputs[0].buffer is last.inputs[0].buffer
    assert (first.outputs[0].offset, second.outputs[0].offset) == (0, 8 * 4)
    wanted = dense_strides((2, 12, 4, 4), NHWC)
    assert first.outputs[0].spec.strides == second.outputs[0].spec.strides == wanted


def test_misaligned_slices_of_a_concat_are_copied() -> None:
    m = Maker()
    x = m.input("x", 2, 3, 4, 4)
    a = m.nhwc(m.op(Conv(), x, m.const(3, 3, 1, 1)))  # 12 bytes: the second would be misaligned
    b = m.nhwc(m.op(Conv(), x, m.const(5, 3, 1, 1)))
    m.out("y", m.op(Relu(), m.nhwc(m.op(Concat(1), a, b))))
    result = lowered(m)
    assert ops(result) == ["Conv", "Conv", "Reformat", "Relu"]
    assert task_of(result, a).outputs[0].buffer is result.tasks[-1].inputs[0].buffer
    assert result.tasks[2].outputs[0].offset == 12


def test_a_concat_whose_rows_are_misaligned_is_all_copies() -> None:
    m = Maker()
    x = m.input("x", 2, 3, 4, 4)
    a = m.nhwc(m.op(Conv(), x, m.const(4, 3, 1, 1)))
    b = m.nhwc(m.op(Conv(), x, m.const(1, 3, 1, 1)))
    m.out("y", m.op(Relu(), m.nhwc(m.op(Concat(1), a, b))))
    assert ops(lowered(m)) == ["Conv", "Conv", "Reformat", "Reformat", "Relu"]


def test_a_dense_slice_needs_no_aligned_rows() -> None:
    m = Maker()
    x = m.input("x", 4, 5)  # rows of 20 bytes
    a, b = m.op(Relu(), x), m.op(Relu(), x)
    m.out("y", m.op(Relu(), m.op(Concat(0), a, b)))
    result = lowered(m)
    assert ops(result) == ["Relu"] * 3
    assert result.tasks[1].outputs[0].offset == 80


def test_layouts_that_differ_from_the_concat_are_copied() -> None:
    m = Maker()
    x = m.input("x", 2, 3, 4, 4)
    a = m.op(Conv(), x, m.const(8, 3, 1, 1))
    b = m.nhwc(m.op(Conv(), x, m.const(8, 3, 1, 1)))
    m.out("y", m.op(Relu(), m.nhwc(m.op(Concat(1), a, b))))
    result = lowered(m)
    assert ops(result).count("Reformat") == 1
    assert task_of(result, b).outputs[0].offset == 32


def test_a_value_in_two_concats_is_written_into_one_and_copied_into_the_other() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    a, b, c = (m.op(Relu(), x) for _ in range(3))
    m.out("y", m.op(Relu(), m.op(Concat(0), a, b)))
    m.out("z", m.op(Relu(), m.op(Concat(0), c, a)))
    assert ops(lowered(m)).count("Reformat") == 1


def test_the_same_value_twice_is_copied_twice() -> None:
    m = Maker()
    a = m.op(Relu(), m.input("x", 4, 8))
    m.out("y", m.op(Relu(), m.op(Concat(0), a, a)))
    assert ops(lowered(m)) == ["Relu", "Reformat", "Reformat", "Relu"]


def test_a_value_and_its_view_in_one_concat() -> None:
    m = Maker()
    a = m.op(Relu(), m.input("x", 4, 8))
    m.out("y", m.op(Relu(), m.op(Concat(0), a, m.op(Identity(), a))))
    assert ops(lowered(m)) == ["Relu", "Reformat", "Relu"]


def test_concat_of_inputs_and_constants_is_copies() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    m.out("y", m.op(Concat(0), x, m.const(2, 8), x))
    result = lowered(m)
    assert ops(result) == ["Reformat"] * 3
    assert [t.problem.constants for t in result.tasks] == [(False,), (True,), (False,)]


def test_a_concat_that_is_an_output_is_written_there() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    a, b = m.op(Relu(), x), m.op(Relu(), x)
    m.out("y", m.op(Concat(0), a, b))
    result = lowered(m)
    assert ops(result) == ["Relu", "Relu"]
    assert [t.outputs[0].buffer.space for t in result.tasks] == ["output", "output"]
    assert [t.outputs[0].offset for t in result.tasks] == [0, 128]


def test_chains_of_concats_share_one_buffer() -> None:
    """The layers of a DenseNet block: each reads all before it."""
    m = Maker()
    x = m.input("x", 1, 3, 4, 4)
    parts = [m.nhwc(m.op(Conv(), x, m.const(8, 3, 1, 1)))]
    for width in (4, 8, 4):
        joined = m.nhwc(m.op(Concat(1), *parts)) if len(parts) > 1 else parts[0]
        weights = m.const(width, joined.shape[1], 1, 1)
        parts.append(m.nhwc(m.op(Conv(), joined, weights)))
    m.out("y", m.op(Relu(), m.nhwc(m.op(Concat(1), *parts))))
    result = lowered(m)
    assert ops(result) == ["Conv"] * 4 + ["Relu"]
    whole = result.tasks[-1].inputs[0]
    assert {t.outputs[0].buffer for t in result.tasks[:-1]} == {whole.buffer}
    assert [t.outputs[0].offset for t in result.tasks[:-1]] == [0, 32, 48, 80]
    assert result.tasks[2].inputs[0].spec.strides == whole.spec.strides


def test_nested_concats() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    inner = m.op(Concat(0), m.op(Relu(), x), m.op(Relu(), x))
    m.out("y", m.op(Concat(0), inner, m.op(Relu(), x)))
    m.out("z", m.op(Relu(), inner))
    lowered(m)


def inception(order: tuple[int, ...] = (8, 4, 16), *, first: bool = True) -> tuple[Maker, Value]:
    """A product whose last piece (or first) is the first (or last) input of a Concat."""
    m = Maker()
    x = m.nhwc(m.input("x", 2, 8, 3, 3))
    source = m.nhwc(m.op(Conv(), x, m.const(sum(order), 8, 1, 1)))
    pieces = [m.nhwc(v) for v in m.add(Split(1, order), source)]
    joined = pieces.pop() if first else pieces.pop(0)
    others = [m.nhwc(m.op(Conv(pads=(1,) * 4), v, m.const(8, v.shape[1], 3, 3))) for v in pieces]
    both = m.nhwc(m.op(Concat(1), *((joined, *others) if first else (*others, joined))))
    return m, both


@pytest.mark.parametrize("first", [True, False])
def test_what_is_beside_a_concat_lies_in_its_buffer(first: bool) -> None:
    """The 1x1 convolutions of an inception block as one: nothing is copied."""
    m, both = inception((8, 4, 16) if first else (16, 8, 4), first=first)
    m.out("y", m.op(Relu(), both))
    result = lowered(m)
    assert ops(result) == ["Conv", "Conv", "Conv", "Relu"]
    assert {t.outputs[0].buffer for t in result.tasks[:3]} == {result.tasks[3].inputs[0].buffer}
    assert result.tasks[0].outputs[0].buffer.nbytes == 4 * 2 * 9 * (12 + 32)
    at = [t.outputs[0].offset // 4 for t in result.tasks[:3]]
    assert at == ([0, 12 + 16, 12 + 24] if first else [16, 0, 8])
    assert result.tasks[3].inputs[0].offset == (4 * 12 if first else 0)
    assert all(t.outputs[0].spec.strides == (9 * 44, 1, 3 * 44, 44) for t in result.tasks[:3])


def test_an_output_has_nothing_beside_it() -> None:
    m, both = inception()
    m.out("y", both)
    result = lowered(m)
    assert ops(result) == ["Conv", "Conv", "Conv", "Reformat"]
    assert result.tasks[3].inputs[0].spec.shape[1] == 16
    assert result.tasks[3].outputs[0].buffer.space == "output"


def test_a_reshape_of_a_concat_keeps_it_dense() -> None:
    m, both = inception()
    m.out("y", m.op(Relu(), m.op(Reshape((2, 32 * 9)), both)))
    assert ops(lowered(m)) == ["Conv", "Conv", "Conv", "Reformat", "Reformat", "Relu"]


def test_misaligned_room_beside_a_concat_is_not_taken() -> None:
    m, both = inception((8, 2, 16))
    m.out("y", m.op(Relu(), both))
    result = lowered(m)
    assert ops(result).count("Reformat") > 0
    assert result.tasks[-1].inputs[0].buffer.nbytes == 4 * 2 * 9 * 32


def test_a_whole_split_inside_a_concat_is_written_there() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    source = m.op(MatMul(), x, m.const(8, 12))
    a, b = m.add(Split(1, (8, 4)), source)
    m.out("y", m.op(Concat(-1), m.op(Relu(), x), a, b, m.op(Relu(), a)))
    result = lowered(m)
    assert ops(result) == ["MatMul", "Relu", "Relu"]
    assert {t.outputs[0].buffer.space for t in result.tasks} == {"output"}
    assert task_of(result, source).outputs[0].offset == 32


def test_the_inner_of_two_concats_is_a_slice_of_the_outer() -> None:
    m = Maker()
    x = m.input("x", 4, 8)
    a, b, c, d = (m.op(Relu(), x) for _ in range(4))
    inner = m.op(Concat(1), b, c)
    m.out("z", m.op(Relu(), inner))
    m.out("y", m.op(Relu(), m.op(Concat(1), a, b, c, d)))
    result = lowered(m)
    assert ops(result) == ["Relu"] * 6
    assert task_of(result, m.graph.outputs["z"]).inputs[0].offset == 32


def test_views_of_views_are_free_if_what_reads_them_is() -> None:
    """A vision transformer's heads: transposed to [3, tokens, …], of which slices are dense."""
    m = Maker()
    x = m.op(Relu(), m.input("x", 5, 3, 8))
    turned = m.op(Transpose((1, 0, 2)), x)
    for index in range(3):
        piece = m.op(Slice((index, 0, 0), (index + 1, 5, 8), (1, 1, 1)), turned)
        m.out(f"y{index}", m.op(Relu(), m.op(Reshape((5, 8)), piece)))
    result = lowered(m)
    assert ops(result) == ["Relu"] * 4
    assert [t.inputs[0].offset for t in result.tasks[1:]] == [0, 32, 64]
    assert all(t.inputs[0].spec.strides == (24, 1) for t in result.tasks[1:])


def test_one_reader_that_wants_elements_moved_gets_one_copy_for_all() -> None:
    m = Maker()
    turned = m.op(Transpose((1, 0, 2)), m.op(Relu(), m.input("x", 5, 3, 8)))
    m.out("y", m.op(Relu(), m.op(Slice((1, 0, 0), (2, 5, 8), (1, 1, 1)), turned)))
    m.out("z", m.op(Relu(), turned))
    assert ops(lowered(m)) == ["Relu", "Reformat", "Relu", "Relu"]
