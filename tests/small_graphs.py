"""Random small graphs for the tests of lowering and assembly, and a plain interpreter of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from nrt.dtypes import FP16, FP32, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Expand,
    Identity,
    MatMul,
    MaxPool,
    Mul,
    Reformat,
    Relu,
    Reshape,
    Slice,
    Softmax,
    Split,
    Transpose,
)
from nrt.ir.value import NHWC, Value
from nrt.lowering import Buffer, Lowered, Place
from nrt.problem import TensorSpec
from nrt.trial import relative_error

__all__ = ["Maker", "Recipe", "feeds", "make", "operands", "recipes", "run_tasks", "worst_error"]

MOST_ELEMENTS = 4096


class Maker:
    """A graph that grows by steps; every choice is a number of the recipe."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("random")
        self.pool: list[Value] = []
        self.choices: list[int] = []

    def pick(self, count: int) -> int:
        """The next choice, below ``count``."""
        return (self.choices.pop(0) if self.choices else 0) % max(count, 1)

    def random(self, *shape: int, dtype: DType = FP32) -> Array:
        return np.asarray(self.rng.standard_normal(shape), np.float32).astype(dtype.numpy)

    def input(self, name: str, *shape: int, dtype: DType = FP32) -> Value:
        value = self.graph.add_input(name, shape, dtype)
        self.pool.append(value)
        return value

    def const(self, *shape: int, dtype: DType = FP32) -> Value:
        return self.graph.add_constant("c", self.random(*shape, dtype=dtype))

    def op(self, op: Op, *inputs: Value) -> Value:
        return self.add(op, *inputs)[0]

    def add(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        outputs = self.graph.add_node(op, inputs).outputs
        self.pool += outputs
        return outputs

    def out(self, name: str, value: Value) -> None:
        self.graph.set_output(name, value)

    def nhwc(self, value: Value) -> Value:
        self.graph.set_layout(value, NHWC)
        return value


def _factors(count: int, maker: Maker) -> tuple[int, ...]:
    """A shape of ``count`` elements with dimensions of small factors, some of size 1."""
    shape = []
    while count > 1:
        divisors = [d for d in range(2, count + 1) if count % d == 0]
        shape.append(divisors[maker.pick(len(divisors))])
        count //= shape[-1]
    for _ in range(maker.pick(3)):
        shape.insert(maker.pick(len(shape) + 1), 1)
    return tuple(shape)[:6] if len(shape) <= 6 else (int(np.prod(shape)),)


def _conv(m: Maker, x: Value) -> None:
    if len(x.shape) != 4 or 0 in x.shape:
        return
    c = x.shape[1]
    k = (4, 8, 3)[m.pick(3)]
    size = 1 + 2 * m.pick(2)
    weights = m.random(k, c, size, size) / np.float32(np.sqrt(c * size * size))
    w = m.graph.add_constant("w", weights.astype(x.dtype.numpy))
    m.op(Conv(pads=(size // 2,) * 4), x, w)


def _pool(m: Maker, x: Value) -> None:
    if len(x.shape) == 4 and min(x.shape) > 0 and x.dtype.is_float:
        kind = (MaxPool, AveragePool)[m.pick(2)]
        m.op(kind((3, 3), (1, 1), (1, 1, 1, 1)), x)


def _mean(m: Maker, x: Value) -> None:
    """A linear 1x1 convolution and the mean of windows that lie side by side."""
    if len(x.shape) != 4 or min(x.shape) == 0 or not x.dtype.is_float:
        return
    c, size = x.shape[1], (1 + m.pick(min(3, x.shape[2])), 1 + m.pick(min(3, x.shape[3])))
    weights = (m.random(8, c, 1, 1) / np.float32(np.sqrt(c))).astype(x.dtype.numpy)
    y = m.op(Conv(), x, m.graph.add_constant("w", weights))
    m.op(AveragePool(size, size, (0, 0, 0, 0)), y)


def _concat(m: Maker, x: Value) -> None:
    if not x.shape:
        return
    axis = m.pick(len(x.shape))
    fits = [
        v
        for v in (*m.pool, *m.graph.constants)
        if v.dtype is x.dtype
        and len(v.shape) == len(x.shape)
        and all(a == b for d, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if d != axis)
    ]
    parts = [fits[m.pick(len(fits))] for _ in range(m.pick(3))]
    parts.insert(m.pick(len(parts) + 1), x)
    if m.pick(4) == 0:
        shape = (*x.shape[:axis], 1 + m.pick(4), *x.shape[axis + 1 :])
        parts.append(m.const(*shape, dtype=x.dtype))
    if sum(int(np.prod(p.shape)) for p in parts) <= MOST_ELEMENTS:
        m.op(Concat(axis - len(x.shape) if m.pick(2) else axis), *parts)


def _chain(m: Maker, x: Value) -> None:
    """A Concat that begins with the inputs of another one, as in a DenseNet block."""
    nodes = [n for n in m.graph.nodes if isinstance(n.op, Concat)]
    if not nodes:
        return
    node = nodes[m.pick(len(nodes))]
    axis, y = node.op.axis, node.output  # type: ignore[attr-defined]
    m.op(Relu(), y)
    more = [m.pool[-1]] if m.pick(2) else []
    while len(more) < 2:
        shape = list(y.shape)
        shape[axis] = (4, 8, 1, 3)[m.pick(4)]
        m.op(Expand(tuple(shape)), m.const(*(1 for _ in shape), dtype=y.dtype))
        more.append(m.op(Relu(), m.pool[-1]))
        if m.pick(2) and len(shape) == 4:
            m.graph.set_layout(more[-1], y.layout)
    if sum(int(np.prod(p.shape)) for p in (*node.inputs, *more)) <= MOST_ELEMENTS:
        z = m.op(Concat(axis), *node.inputs, *more)
        if m.pick(3):
            m.graph.set_layout(z, y.layout)
        m.op(Relu(), y)
        m.op(Relu(), z)


def _slice(m: Maker, x: Value) -> None:
    starts, ends, steps = [], [], []
    for size in x.shape:
        mode = m.pick(4) if size else 0
        if mode == 3:
            starts.append(size - 1)
            ends.append(-1)
            steps.append(-1 - m.pick(2))
            continue
        start = m.pick(size) if mode else 0
        starts.append(start)
        ends.append(start + m.pick(size - start + 1) if mode == 1 else size)
        steps.append(1 + m.pick(2) if mode == 2 else 1)
    m.op(Slice(tuple(starts), tuple(ends), tuple(steps)), x)


def _split(m: Maker, x: Value) -> None:
    if not x.shape:
        return
    axis = m.pick(len(x.shape))
    first = m.pick(x.shape[axis] + 1)
    m.add(Split(axis, (first, x.shape[axis] - first)), x)


def _join(m: Maker, x: Value) -> None:
    """A Split of something computed, of which some pieces are joined with others in a Concat."""
    if not x.shape or 0 in x.shape:
        return
    source = m.op(Relu(), x)
    axis = m.pick(len(x.shape))
    first = m.pick(x.shape[axis] + 1)
    second = m.pick(x.shape[axis] - first + 1)
    pieces = list(m.add(Split(axis, (first, second, x.shape[axis] - first - second)), source))
    shape = list(x.shape)
    shape[axis] = (4, 8, 1, 3)[m.pick(4)]
    other = m.op(Relu(), m.op(Expand(tuple(shape)), m.const(*(1 for _ in shape), dtype=x.dtype)))
    if len(shape) == 4 and m.pick(2):
        for value in (source, other, *pieces):
            m.graph.set_layout(value, NHWC)
    parts = [
        [other, *pieces[2:]], [*pieces[1:], other], [*pieces, other], [other, *pieces[:2]],
        [pieces[0], other], [other, *pieces[:1]],
    ][m.pick(6)]  # fmt: skip
    y = m.op(Concat(axis), *parts)
    m.graph.set_layout(y, source.layout)
    m.op(Relu(), y)
    for value in pieces:
        if m.pick(2):
            m.op(Relu(), value)


def _transpose(m: Maker, x: Value) -> None:
    rest = list(range(len(x.shape)))
    m.op(Transpose(tuple(rest.pop(m.pick(len(rest))) for _ in x.shape)), x)


def _reshape(m: Maker, x: Value) -> None:
    size = int(np.prod(x.shape))
    m.op(Reshape(_factors(size, m) if size else (0, *x.shape)), x)


def _matmul(m: Maker, x: Value) -> None:
    if len(x.shape) < 2 or 0 in x.shape:
        return
    mode = m.pick(4)
    n = 1 + m.pick(6)
    k = x.shape[-1]
    scale = np.float32(1 / np.sqrt(k))
    if mode == 0:
        w = m.graph.add_constant("w", (m.random(k, n) * scale).astype(x.dtype.numpy))
        m.op(MatMul(), x, w)
    elif mode == 1:
        w = m.graph.add_constant("w", (m.random(n, k) * scale).astype(x.dtype.numpy))
        m.op(MatMul(trans_b=True), x, w)
    elif mode == 2:
        k = x.shape[-2]
        w = m.graph.add_constant(
            "w", (m.random(k, n) / np.float32(np.sqrt(k))).astype(x.dtype.numpy)
        )
        m.op(MatMul(trans_a=True), x, w)
    else:
        y = m.op(Softmax(), x)
        m.op(MatMul(trans_b=True), x, y)


def _expand(m: Maker, x: Value) -> None:
    shape = tuple(2 + m.pick(2) if d == 1 and m.pick(2) else d for d in x.shape)
    if m.pick(3) == 0:
        shape = (2, *shape)
    if len(shape) <= 6 and int(np.prod(shape)) <= MOST_ELEMENTS:
        m.op(Expand(shape), x)


def _arithmetic(m: Maker, x: Value) -> None:
    mode = m.pick(4)
    same = [v for v in m.pool if v.shape == x.shape and v.dtype is x.dtype]
    if mode == 0:
        m.op(Relu(), x)
    elif mode == 1:
        m.op(Add(), x, same[m.pick(len(same))])
    elif mode == 2:
        m.op(Mul(), x, m.const(*x.shape[-1:], dtype=x.dtype))
    else:
        m.op(Identity(), x)


def _reformat(m: Maker, x: Value) -> None:
    y = m.op(Reformat((FP32, FP16)[m.pick(2)]), x)
    _layout(m, y)


def _layout(m: Maker, x: Value) -> None:
    if x.producer is not None and len(x.shape) == 4:
        m.graph.set_layout(x, NHWC)


def _constant(m: Maker, x: Value) -> None:
    value = m.graph.add_constant("c", m.random(*x.shape, dtype=x.dtype))
    if m.pick(2) and len(value.shape) == 4:
        m.graph.set_layout(value, NHWC)
    m.pool.append(value)


STEPS: dict[str, Callable[[Maker, Value], None]] = {
    "arithmetic": _arithmetic,
    "chain": _chain,
    "concat": _concat,
    "constant": _constant,
    "conv": _conv,
    "expand": _expand,
    "join": _join,
    "layout": _layout,
    "matmul": _matmul,
    "mean": _mean,
    "pool": _pool,
    "reformat": _reformat,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "transpose": _transpose,
}

Recipe = tuple[int, list[tuple[str, list[int]]]]

recipes: st.SearchStrategy[Recipe] = st.tuples(
    st.integers(0, 3),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(STEPS)), st.lists(st.integers(0, 59), min_size=4, max_size=14)
        ),
        min_size=1,
        max_size=9,
    ),
)


def make(recipe: Recipe, seed: int) -> Graph:
    """The graph of a recipe, with fresh constants; layouts are set on some rank-4 values."""
    kind, steps = recipe
    m = Maker(seed)
    dtype = FP16 if kind & 1 else FP32
    m.input("x", *((1, 8, 4, 4) if kind & 2 else (2, 3, 4, 5)), dtype=dtype)
    m.input("unused", 3)
    for name, choices in steps:
        m.choices = list(choices)
        x = m.pool[-1 - m.pick(3)] if len(m.pool) > 4 else m.pool[-m.pick(len(m.pool) - 1)]
        if x.dtype.is_float and x.name != "unused":
            STEPS[name](m, x)
        if m.pick(5) == 0:
            value = m.pool[-1]
            m.out(f"out{len(m.graph.outputs)}", value)
            if m.pick(4) == 0:
                m.out(f"again{len(m.graph.outputs)}", value)
    m.out("last", m.pool[-1])
    return m.graph


def operands(maker: Maker | Graph, seed: int = 1) -> dict[str, Array]:
    graph = maker.graph if isinstance(maker, Maker) else maker
    return feeds(graph, np.random.default_rng(seed))


def feeds(graph: Graph, rng: np.random.Generator) -> dict[str, Array]:
    """Fresh random data for every input."""
    return {
        v.name: np.asarray(rng.standard_normal(v.shape), np.float32).astype(v.dtype.numpy)
        for v in graph.inputs
    }


def _view(memory: dict[Buffer, Any], place: Place) -> Array:
    item = place.spec.dtype.itemsize
    block = memory[place.buffer]
    assert place.offset + place.spec.nbytes <= len(block), f"{place} ends outside its buffer"
    assert place.spec.size or place.offset <= len(block)
    strides = tuple(s * item for s in place.spec.strides)
    if place.spec.size == 0:
        return np.empty(place.spec.shape, place.spec.dtype.numpy)
    return np.ndarray(place.spec.shape, place.spec.dtype.numpy, block, place.offset, strides)


def _block(lowered: Lowered, place: Place, inputs: Mapping[str, Array]) -> Any:
    buffer = place.buffer
    if buffer.space == "input":
        name, spec = lowered.inputs[buffer.index]
        return bytearray(_image(inputs[name], spec))
    if buffer.space != "constant":
        return bytearray(b"\xff" * buffer.nbytes)
    assert buffer.array is not None
    assert buffer.array.shape == place.spec.shape
    assert place.offset == 0
    return bytearray(_image(buffer.array, place.spec))


def _image(array: Array, spec: TensorSpec) -> bytes:
    """``array`` as memory with the strides of ``spec``."""
    flat = np.zeros(spec.span, spec.dtype.numpy)
    strides = tuple(s * spec.dtype.itemsize for s in spec.strides)
    np.lib.stride_tricks.as_strided(flat, spec.shape, strides)[...] = array
    return flat.tobytes()


def run_tasks(lowered: Lowered, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Execute tasks one by one on byte buffers, each kernel being its op's reference."""
    memory: dict[Buffer, Any] = {}
    for task in lowered.tasks:
        for place in (*task.inputs, *task.outputs):
            if place.buffer not in memory:
                memory[place.buffer] = _block(lowered, place, inputs)
        problem = task.problem
        assert tuple(p.spec for p in task.inputs) == problem.inputs
        assert tuple(p.spec for p in task.outputs) == problem.outputs
        assert problem.constants == tuple(p.buffer.space == "constant" for p in task.inputs)
        arrays = [np.array(_view(memory, p), order="C") for p in task.inputs]
        results = problem.op.reference(*arrays)
        for place, result in zip(task.outputs, results, strict=True):
            assert result.dtype == place.spec.dtype.numpy
            assert place.buffer.space in ("arena", "output")
            _view(memory, place)[...] = result
    outputs: dict[str, Array] = {}
    for index, (name, spec) in enumerate(lowered.outputs):
        found = [b for b in memory if b.space == "output" and b.index == index]
        if spec.size == 0 and not found:
            outputs[name] = np.empty(spec.shape, spec.dtype.numpy)
            continue
        assert len(found) == 1, f"output {name} is written in {len(found)} buffers"
        data = np.frombuffer(bytes(memory[found[0]]), spec.dtype.numpy)
        steps = tuple(s * spec.dtype.itemsize for s in spec.strides)
        outputs[name] = np.lib.stride_tricks.as_strided(data, spec.shape, steps)
    return outputs


def worst_error(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """The largest relative error of an output; infinite if names, shapes or dtypes differ."""
    if list(found) != list(wanted):
        return float("inf")
    worst = 0.0
    for name, array in wanted.items():
        if found[name].shape != array.shape or found[name].dtype != array.dtype:
            return float("inf")
        worst = max(worst, relative_error(found[name], array))
    return worst
