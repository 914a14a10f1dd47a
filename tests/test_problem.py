"""Problems: specs, their plain-data form, and keys that every process agrees on."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, INT8, INT32, INT64, DType
from nrt.errors import GraphError, PlanError
from nrt.ir import ops as ir
from nrt.ir.op import Op, TensorType
from nrt.ir.ops import OPS
from nrt.ir.ops.elementwise import Elementwise
from nrt.ir.pointwise import Builder
from nrt.problem import Problem, TensorSpec, dense_strides, op_from_data, op_to_data


def _results() -> Any:
    b = Builder("ff")
    return b.build(b("add", 0, 1), b("lt", 0, 1))


def _program() -> Any:
    b = Builder("fff")
    total = b("add", b("mul", 0, 1), 2)
    return b.build(b("where", b("lt", total, b.const(-math.inf)), b.const(-0.0), total))


def _affine() -> Any:
    b = Builder("fff")
    return b.build(b("add", b("mul", 0, 1), 2))


def _tensor(dtype: DType, *shape: int) -> TensorType:
    return TensorType(shape, dtype)


X = _tensor(FP32, 2, 6, 7, 5)
W = _tensor(FP32, 4, 3, 3, 2)
C = _tensor(FP32, 6)

# One entry per op class at least; epilogues and every attribute type among them.
CASES: list[tuple[Op, list[TensorType]]] = [
    (ir.Conv((2, 1), (1, 0, 1, 2), (1, 2), 2), [X, W]),
    (ir.Conv(groups=2), [X, W, _tensor(FP32, 4)]),
    (
        ir.Conv(groups=2, epilogue=_program(), out_dtype=FP16),
        [X, W, _tensor(FP16, 4, 1, 1), _tensor(BF16, 1)],
    ),
    (
        ir.Conv(groups=2, prologue=_affine(), epilogue=_program()),
        [X, W, _tensor(FP16, 6, 1, 1), _tensor(FP32), _tensor(FP16, 4, 1, 1), _tensor(BF16, 1)],
    ),
    (ir.ConvTranspose((2, 2), output_padding=(1, 0)), [X, _tensor(FP32, 6, 4, 3, 3)]),
    (
        ir.ConvTranspose(epilogue=_program(), out_dtype=FP64),
        [X, _tensor(FP32, 6, 4, 3, 3), _tensor(FP32, 4, 9, 1), _tensor(FP32)],
    ),
    (ir.MatMul(trans_b=True), [_tensor(FP16, 3, 2, 5), _tensor(FP16, 7, 5)]),
    (
        ir.MatMul(True, epilogue=_program(), out_dtype=BF16),
        [_tensor(FP16, 5, 2), _tensor(FP16, 5, 7), _tensor(FP16, 7), _tensor(FP32, 2, 1)],
    ),
    (ir.MaxPool((3, 2), (2, 2), (1, 0, 1, 1), (1, 2), True), [X]),
    (ir.AveragePool((3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True), [X]),
    (ir.Reduce("l2", (1, -1), False), [X]),
    (
        ir.Reduce("max", (2, 3), True, _program(), _program(), FP16),
        [X, _tensor(FP32, 5), _tensor(FP32), _tensor(FP32), _tensor(FP16, 6, 1, 1)],
    ),
    (
        ir.PooledConv("sum", (2, 1), (1, 0, 1, 1), (1, 2), _program(), FP16),
        [X, _tensor(FP32, 4, 6, 3, 2), _tensor(FP16, 4, 1, 1), _tensor(BF16, 1)],
    ),
    (
        ir.PooledMatMul("max", True, _program(), _program(), FP16),
        [
            X,
            _tensor(FP32, 9, 6),
            _tensor(FP32),
            _tensor(BF16, 6, 1, 1),
            _tensor(FP32, 9),
            _tensor(FP32),
        ],
    ),
    (
        ir.AveragePool((2, 2), (1, 1), (0,) * 4, epilogue=_program(), out_dtype=FP16),
        [X, _tensor(FP16, 6, 1, 1), _tensor(FP32)],
    ),
    (ir.BatchNormalization(3e-4), [X, C, C, C, C]),
    (ir.LayerNormalization(-2, 1e-6), [X, _tensor(FP32, 7, 5), _tensor(FP32, 7, 5)]),
    (ir.InstanceNormalization(1e-3), [X, C, C]),
    (ir.LRN(3, 2e-4, 0.5, 2.0), [X]),
    (ir.AbsHistogram(), [X]),
    (ir.Softmax(1), [X]),
    (ir.LogSoftmax(), [X]),
    (ir.Reshape((12, 5, 7)), [X]),
    (ir.Transpose((0, 3, 1, 2)), [X]),
    (ir.Slice((1, 5, 0, 4), (2, -1, 6, 0), (1, -2, 3, -1)), [X]),
    (ir.Concat(-1), [X, X, _tensor(FP32, 2, 6, 7, 1)]),
    (ir.Split(1, (1, 0, 5)), [X]),
    (ir.Expand((3, 2, 6)), [_tensor(INT8, 2, 1)]),
    (ir.Pad((0, 0, 1, -2, 0, 3, 0, 0), value=-math.inf), [X]),
    (ir.Pad((0, 0, 1, 2, 0, 0, 3, 2), "reflect"), [X]),
    (ir.Gather(-2), [X, _tensor(INT64, 3, 1)]),
    (ir.GatherElements(1), [X, _tensor(INT32, 2, 4, 7, 5)]),
    (
        ir.Resize((2, 6, 14, 9), (1.0, 1.0, 2.0, 1.8), "cubic", "align_corners", "floor", -0.5),
        [X],
    ),
    (ir.Identity(), [_tensor(BOOL)]),
    (ir.Dropout(), [X]),
    (ir.Reformat(FP16), [X]),
    (ir.Pointwise(_program(), FP16), [X, _tensor(FP16, 5), _tensor(FP64)]),
    (ir.MultiPointwise(_results(), (FP16, BOOL)), [X, _tensor(FP16, 5)]),
    (ir.Cast(INT32), [X]),
    (ir.Quantize(INT8), [X, _tensor(FP32, 6, 1, 1)]),
    (ir.Dequantize(FP16), [_tensor(INT8, 2, 6), _tensor(FP32), _tensor(INT8)]),
    (ir.Clip(None, 6), [X]),
    (ir.Clip(-1.5), [X]),
    (ir.Gelu(True), [X]),
    (ir.HardSigmoid(0.25, 0.375), [X]),
    (ir.Selu(1.5, 2.5), [X]),
    (ir.LeakyRelu(0.125), [X]),
    (ir.Where(), [_tensor(BOOL, 5), X, _tensor(FP32, 1)]),
    (ir.Max(), [X, _tensor(FP32, 5), X]),
]


def _plain_elementwise() -> list[tuple[Op, list[TensorType]]]:
    """The elementwise classes that the table leaves out, on inputs that they accept."""
    covered = {type(op) for op, _ in CASES}
    result: list[tuple[Op, list[TensorType]]] = []
    for cls in OPS:
        if cls in covered or not issubclass(cls, Elementwise):
            continue
        dtype = {"f": FP32, "i": INT32, "b": BOOL}[cls.accepts[0]]
        low, high = cls.arity
        result.append((cls(), [_tensor(dtype, 3, 5)] * min(max(low, 2), high)))
    return result


ALL = [*CASES, *_plain_elementwise()]
IDS = [f"{op.name}-{i}" for i, (op, _) in enumerate(ALL)]


def problem(op: Op, inputs: list[TensorType]) -> Problem:
    outputs = op.infer(*inputs)
    return Problem(
        op,
        tuple(TensorSpec.dense(t.shape, t.dtype) for t in inputs),
        tuple(TensorSpec.dense(t.shape, t.dtype) for t in outputs),
        tuple(i % 2 == 1 for i in range(len(inputs))),
    )


def conv() -> Problem:
    return problem(*CASES[2])


# -- specs -----------------------------------------------------------------------------------------


def test_dense_strides_follow_the_order_in_memory() -> None:
    assert dense_strides((2, 3, 4, 5)) == (60, 20, 5, 1)
    assert dense_strides((2, 3, 4, 5), (0, 2, 3, 1)) == (60, 1, 15, 3)
    assert dense_strides(()) == ()


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=5),
    data=st.data(),
)
def test_size_and_span_are_numpys(shape: list[int], data: st.DataObject) -> None:
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    spec = TensorSpec(tuple(shape), FP16, tuple(strides))
    touched = {
        sum(i * s for i, s in zip(index, strides, strict=True)) for index in np.ndindex(*shape)
    }
    assert spec.size == math.prod(shape)
    assert spec.span == max(touched, default=-1) + 1
    assert spec.nbytes == 2 * spec.span


def test_dense_ignores_strides_of_single_elements() -> None:
    assert TensorSpec((2, 1, 3), FP32, (3, 99, 1)).is_row_major
    assert not TensorSpec((2, 1, 3), FP32, (4, 99, 1)).is_row_major
    assert TensorSpec.dense((2, 8, 3, 4), FP32, (0, 2, 3, 1)).is_nhwc
    assert not TensorSpec.dense((2, 8, 3, 4), FP32).is_nhwc
    assert TensorSpec.dense((2, 1, 3, 4), FP32).is_nhwc
    assert not TensorSpec.dense((8, 3, 4), FP32).is_nhwc


def test_specs_and_problems_as_text() -> None:
    assert str(TensorSpec.dense((2, 3), FP16)) == "fp16[2,3]"
    assert str(TensorSpec.dense((2, 8, 3, 4), FP32, (0, 2, 3, 1))) == "fp32[2,8,3,4]{nhwc}"
    assert str(TensorSpec((2, 3), FP16, (8, 2))) == "fp16[2,3]{(8, 2)}"
    assert str(problem(ir.Transpose((1, 0)), [_tensor(FP32, 2, 3)])) == (
        "Transpose(fp32[2,3]) -> fp32[3,2]"
    )


def test_nbytes_counts_repeated_elements_once() -> None:
    x = TensorSpec((2, 3, 4), FP32, (0, 4, 1))
    y = TensorSpec.dense((2, 3, 4), FP32)
    assert Problem(ir.Reformat(FP32), (x,), (y,), (False,)).nbytes == (12 + 24) * 4


# -- round trip ------------------------------------------------------------------------------------


def test_every_op_class_is_covered() -> None:
    assert {type(op) for op, _ in ALL} == set(OPS)


@pytest.mark.parametrize(("op", "inputs"), ALL, ids=IDS)
def test_round_trip(op: Op, inputs: list[TensorType]) -> None:
    before = problem(op, inputs)
    data = before.to_data()
    assert Problem.from_data(data) == before
    # As a plan file has it, where tuples and lists are one.
    again = Problem.from_data(msgpack.unpackb(msgpack.packb(data)))
    assert again == before
    assert again.key == before.key
    assert again.family == op.name


def test_defaults_are_left_out() -> None:
    assert op_to_data(ir.Conv()) == ["Conv", {}]
    assert op_to_data(ir.Conv(groups=2)) == ["Conv", {"groups": 2}]
    assert op_from_data(["Conv", {}]) == ir.Conv()


def test_numpy_scalars_are_stored_as_numbers() -> None:
    op = ir.LeakyRelu(np.float64(0.25))  # type: ignore[arg-type]
    data = op_to_data(op)
    assert repr(data) == "['LeakyRelu', {'alpha': 0.25}]"
    assert problem(op, [X]).key == problem(ir.LeakyRelu(0.25), [X]).key


def test_an_attribute_without_a_stored_form_is_an_error() -> None:
    op = ir.LeakyRelu(1j)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="attribute of type complex cannot be stored in a plan"):
        op_to_data(op)


def test_keys_differ_where_problems_do() -> None:
    base = conv()
    others = [
        replace(base, op=replace(base.op, out_dtype=FP32)),  # type: ignore[type-var]
        replace(base, constants=(False,) * 4),
        replace(base, inputs=(replace(base.inputs[0], strides=(210, 1, 30, 6)), *base.inputs[1:])),
        replace(base, outputs=(replace(base.y, dtype=FP32),)),
    ]
    assert len({p.key for p in (base, *others)}) == 5


def test_keys_are_the_same_in_every_process() -> None:
    code = (
        "from test_problem import ALL, problem\n"
        "print(*(problem(*case).key for case in ALL), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [problem(*case).key for case in ALL]


# -- malformed data --------------------------------------------------------------------------------


def _edited(change: Any) -> Any:
    data = msgpack.unpackb(msgpack.packb(conv().to_data()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(), "malformed problem: not enough values"),
        (lambda d: d[0].__setitem__(0, "Evil"), "op 'Evil' is unknown"),
        (lambda d: d[0].__setitem__(0, ["Conv"]), "malformed problem: "),
        (lambda d: d[0].__setitem__(1, []), r"Conv: attributes \[\] are no table"),
        (lambda d: d[0][1].__setitem__("evil", 1), "Conv has no attribute evil"),
        (lambda d: d[0][1].__setitem__(7, 1), "Conv has no attribute 7"),
        (lambda d: d[0][1].__setitem__("groups", "2"), "Conv: attribute groups is '2'"),
        (lambda d: d[0][1].__setitem__("groups", 2.5), "Conv: attribute groups is 2.5"),
        (lambda d: d[0][1].__setitem__("groups", True), "Conv: attribute groups is True"),
        (lambda d: d[0][1].__setitem__("strides", [1, None]), "attribute strides is"),
        (lambda d: d[0][1].__setitem__("strides", [0, 1]), "strides .* must be at least 1"),
        (lambda d: d[0][1].__setitem__("out_dtype", "fp32"), "attribute out_dtype is 'fp32'"),
        (lambda d: d[0][1].__setitem__("out_dtype", {"dtype": "fp7"}), "dtype 'fp7' is unknown"),
        (lambda d: d[0][1].__setitem__("out_dtype", {"evil": 1}), "unknown attribute tag 'evil'"),
        (lambda d: d[0][1].__setitem__("out_dtype", {}), "malformed problem: "),
        (lambda d: d[0][1].__setitem__("epilogue", {"program": 3}), "pointwise program: malformed"),
        (
            lambda d: d[0][1].__setitem__("epilogue", {"program": [["f"], [["evil", [], 0]], [0]]}),
            "opcode 'evil' is unknown",
        ),
        (lambda d: d[1].pop(), "got 1 epilogue inputs, the epilogue reads 2"),
        (lambda d: d[1].clear(), "got 0 inputs, expected 2"),
        (lambda d: d[1][0].__setitem__(1, "fp7"), "dtype 'fp7' is unknown"),
        (lambda d: d[1][0].__setitem__(0, [2, 6, 7]), "do not fit"),
        (lambda d: d[1][0].__setitem__(2, [1, 1, 1, -1]), "do not fit"),
        (lambda d: d[1][0].__setitem__(0, [2, 6, 7, 5.0]), "are no whole numbers"),
        (lambda d: d[1][0].__setitem__(0, None), "malformed problem: "),
        (lambda d: d[2][0].__setitem__(0, [2, 4, 5, 3]), r"Conv gives fp16\[2,4,5,4\], the file"),
        (lambda d: d[2].clear(), "Conv gives"),
        (lambda d: d[3].pop(), "3 constant flags for 4 inputs"),
        (lambda d: d[3].__setitem__(0, 1), "constant flag 1 is neither true nor false"),
    ],
)
def test_malformed_problems_are_refused(change: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Problem.from_data(_edited(change))


def test_an_op_with_too_few_inputs_is_refused() -> None:
    data = problem(ir.Add(), [X, X]).to_data()
    data[1].pop()
    data[3].pop()
    with pytest.raises(PlanError, match="malformed problem: Add: got 1 inputs, expected 2"):
        Problem.from_data(data)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["f", "fp32"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "program", "axis"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None)
@given(case=st.sampled_from(ALL), data=st.data())
def test_edited_data_is_a_problem_or_a_plan_error(
    case: tuple[Op, list[TensorType]], data: st.DataObject
) -> None:
    """Any leaf or branch replaced by anything: never another exception."""
    root = msgpack.unpackb(msgpack.packb(problem(*case).to_data()))
    place: Any = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, list | dict) or not inner or data.draw(st.integers(0, 2)) == 0:
            place[key] = data.draw(_JUNK)
            break
        place = inner
    name = data.draw(st.sampled_from(["", "axis", "shape", "strides", "pads", "epilogue", "to"]))
    if name and isinstance(root[0], list) and len(root[0]) == 2 and isinstance(root[0][1], dict):
        root[0][1][name] = data.draw(_JUNK)
    try:
        result = Problem.from_data(root)
    except PlanError:
        return
    assert Problem.from_data(result.to_data()).key == result.key
