"""The host bench: what it checks before it believes a clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nrt import tuner_cpu
from nrt.cpu_kernels import variant_by_name
from nrt.cpu_kernels.reference import Reference
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import BYTES, FP16, FP32, INT8, INT32, UINT8, DType
from nrt.ir.op import Array, Op
from nrt.ir.ops import OPS, Add, Cast, Conv, MatMul, MaxPool, Pointwise, Relu, Split
from nrt.ir.ops.quantize import byte_rounding
from nrt.ir.pointwise import Builder, identity
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.tuner_cpu import CpuBench

Body = Callable[[Sequence[Array], Sequence[Array], Array], None]


def problem(op: Op, *shapes: tuple[int, ...], dtype: DType = FP32, gap: int = 0) -> Problem:
    """``gap`` elements lie between the output's rows."""
    inputs = tuple(TensorSpec.dense(s, dtype) for s in shapes)
    outputs = []
    for t in op.infer(*(s.type for s in inputs)):
        wide = TensorSpec.dense((*t.shape[:-1], t.shape[-1] + gap), t.dtype)
        outputs.append(TensorSpec(t.shape, t.dtype, wide.strides))
    return Problem(op, inputs, tuple(outputs), (False,) * len(inputs))


class Fake(HostVariant):
    """Runs a function of the test."""

    name = "test_fake"
    ops = OPS

    def __init__(self, body: Body, scratch: int = 0) -> None:
        self.body = body
        self.scratch = scratch

    def supports(self, problem: Problem) -> Refusal | None:
        return None

    def workspace(self, problem: Problem, config: Config) -> int:
        return self.scratch

    def bind(self, problem: Problem, config: Config) -> HostCall:
        return self.body


def relu(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
    np.maximum(inputs[0], 0, out=outputs[0])


def test_a_right_kernel_is_timed() -> None:
    timing = CpuBench().measure(Fake(relu), problem(Relu(), (7, 9)), ())
    assert timing.note == ""
    assert timing.seconds is not None
    assert 0 < timing.seconds < 0.1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (lambda i, o, w: None, "inf"),  # outputs start as NaN
        (lambda i, o, w: np.copyto(o[0], i[0]), r"\d\.\d\de[-+]\d\d"),
        (lambda i, o, w: np.copyto(o[0][:-1], np.maximum(i[0][:-1], 0)), "inf"),
        (lambda i, o, w: np.copyto(o[0], np.maximum(i[0], 0) * 1.001), "1.00e-03"),
        (lambda i, o, w: o[0].fill(0), "1.00e\\+00"),
    ],
    ids=["untouched", "identity", "last row missing", "slightly off", "zeros"],
)
def test_a_wrong_kernel_is_reported_not_timed(body: Body, error: str) -> None:
    timing = CpuBench().measure(Fake(body), problem(Relu(), (7, 9)), ())
    assert timing.seconds is None
    assert re.fullmatch(f"wrong result: relative error {error}, limit 1e-04", timing.note)


@pytest.mark.parametrize("dtype", BYTES, ids=str)
@pytest.mark.parametrize(
    ("change", "right"),
    [
        (lambda y: np.bitwise_xor(y[0, :3], 1, out=y[0, :3]), True),
        (lambda y: np.copyto(y[0], y[1]), False),
    ],
    ids=["three are one apart", "another row"],
)
def test_floats_near_a_half_may_round_to_either_side(
    change: Callable[[Array], Array], right: bool, dtype: DType
) -> None:
    b = Builder("f")
    program = b.build(b("mul", 0, b.const(40.0)))
    for p in (
        problem(MatMul(epilogue=program, out_dtype=dtype), (40, 7), (7, 50)),
        problem(Pointwise(byte_rounding(program, dtype), dtype), (40, 50)),
    ):

        def body(
            inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array, op: Op = p.op
        ) -> None:
            outputs[0][...] = op.reference(*inputs)[0]
            change(outputs[0])

        timing = CpuBench().measure(Fake(body), p, ())
        assert (timing.seconds is not None) == right, timing


@pytest.mark.parametrize(
    ("op", "dtypes", "limit"),
    [
        (MatMul(), (UINT8, INT8), 0.0),
        (MatMul(out_dtype=UINT8), (UINT8, INT8), 1e-2),
        (MatMul(out_dtype=INT8), (FP32, FP32), 1e-2),
        (Add(), (UINT8, UINT8), 0.0),
        (MaxPool((1,), (1,), (0, 0), (1,)), (UINT8,), 0.0),
        (MaxPool((1,), (1,), (0, 0), (1,), epilogue=identity("f"), out_dtype=UINT8), (FP32,), 1e-2),
        (Pointwise(byte_rounding(identity("f"), UINT8), UINT8), (FP32,), 1e-2),
        (Relu(), (FP16,), 5e-3),
    ],
    ids=str,
)
def test_tolerance_is_that_of_the_output(op: Op, dtypes: Sequence[DType], limit: float) -> None:
    shape = (5, 5, 5) if isinstance(op, MaxPool) else (5, 5)
    inputs = tuple(TensorSpec.dense(shape, d) for d in dtypes)
    (y,) = op.infer(*(t.type for t in inputs))
    p = Problem(op, inputs, (TensorSpec.dense(y.shape, y.dtype),), (False,) * len(inputs))
    assert tuner_cpu.tolerance(p, p.y) == limit


def test_every_output_is_checked() -> None:
    def half(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        outputs[0][...] = inputs[0][:, :2]

    def whole(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        half(inputs, outputs, workspace)
        outputs[1][...] = inputs[0][:, 2:]

    p = problem(Split(1, (2, 3)), (4, 5))
    assert CpuBench().measure(Fake(half), p, ()).seconds is None
    assert CpuBench().measure(Fake(whole), p, ()).seconds is not None


def test_both_results_of_a_product_are_checked() -> None:
    b = Builder("f")
    program = b.build(0, b("mul", 0, b.const(40.0)))
    p = problem(MatMul(epilogue=program, second_dtype=INT8), (40, 7), (7, 50), gap=2)
    assert [tuner_cpu.tolerance(p, y) for y in p.outputs] == [1e-4, 1e-2]
    variant = variant_by_name("cpu_matmul_panels")
    for config in variant.configs(p):
        assert CpuBench().measure(variant, p, config).seconds is not None

    def first(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        outputs[0][...] = inputs[0] @ inputs[1]

    assert CpuBench().measure(Fake(first), p, ()).note.endswith("limit 1e-02")


def test_half_floats_have_their_own_limit() -> None:
    p = problem(Relu(), (50, 9), dtype=FP16)

    def off(factor: float) -> Body:
        return lambda i, o, w: np.copyto(o[0], (np.maximum(i[0], 0) * factor).astype(np.float16))

    assert CpuBench().measure(Fake(off(1.002)), p, ()).seconds is not None
    assert CpuBench().measure(Fake(off(1.01)), p, ()).note.endswith("limit 5e-03")


def test_integers_are_exact() -> None:
    p = problem(Cast(INT32), (30,))

    def rounds(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        outputs[0][...] = np.rint(inputs[0])

    assert CpuBench().measure(Fake(rounds), p, ()).note.endswith("limit 0e+00")
    assert CpuBench().measure(Reference(), p, ()).seconds is not None


def test_outputs_with_gaps_are_given_as_they_lie() -> None:
    p = problem(Relu(), (4, 5), gap=3)

    def check(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        assert outputs[0].strides == (32, 4)
        relu(inputs, outputs, workspace)

    assert CpuBench().measure(Fake(check), p, ()).seconds is not None


@pytest.mark.parametrize("nbytes", [0, 1, 1000])
def test_the_workspace_has_its_length_and_is_aligned(nbytes: int) -> None:
    def check(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        assert workspace.dtype == np.uint8
        assert workspace.shape == (nbytes,)
        assert not nbytes or workspace.ctypes.data % 64 == 0
        relu(inputs, outputs, workspace)

    assert CpuBench().measure(Fake(check, nbytes), problem(Relu(), (4, 5)), ()).seconds is not None


def test_constants_are_packed() -> None:
    class Packed(Fake):
        def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
            assert slot == 1
            assert array.shape == (5, 3)
            return array.T  # handed on as memory of its own

    def product(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        assert inputs[1].shape == (3, 5)
        assert inputs[1].flags.c_contiguous
        outputs[0][...] = inputs[0] @ inputs[1].T

    plain = problem(MatMul(), (4, 5), (5, 3))
    p = Problem(plain.op, plain.inputs, plain.outputs, (False, True))
    assert CpuBench().measure(Packed(product), p, ()).seconds is not None


def test_one_problem_has_one_set_of_inputs() -> None:
    seen: list[bytes] = []

    def keep(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
        seen.append(inputs[0].tobytes())
        relu(inputs, outputs, workspace)

    bench = CpuBench()
    for p in (problem(Relu(), (4, 5)), problem(Relu(), (5, 4)), problem(Relu(), (4, 5))):
        bench.measure(Fake(keep), p, ())
    assert len(set(seen)) == 2


def test_real_variants_pass_their_check() -> None:
    p = problem(Conv(pads=(1, 1, 1, 1)), (1, 3, 9, 7), (5, 3, 3, 3))
    bench = CpuBench()
    found = [v for v, refusal in bench.variants(p) if refusal is None]
    assert variant_by_name("cpu_reference") in found
    for variant in found:
        config = bench.configs(variant, p)[0]
        assert bench.measure(variant, p, config).note == ""


# -- keys and estimates ----------------------------------------------------------------------------


def test_timing_keys_tell_measurements_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = CpuBench()
    a, b = problem(Relu(), (4, 5)), problem(Relu(), (4, 6))
    fake, reference = Fake(relu), Reference()
    keys = {
        bench.timing_key(fake, a, ()),
        bench.timing_key(reference, a, ()),
        bench.timing_key(fake, b, ()),
        bench.timing_key(fake, a, (1,)),
        bench.timing_key(fake, a, ("1",)),
    }
    assert len(keys) == 5
    assert CpuBench().timing_key(fake, a, ()) in keys
    monkeypatch.setattr(tuner_cpu, "_source_hash", lambda: "edited")
    assert bench.timing_key(fake, a, ()) not in keys


def test_simpler_variants_are_estimated_last_only_as_references() -> None:
    bench = CpuBench()
    p = problem(Add(), (4, 5), (4, 5))
    variants = [v for v, refusal in bench.variants(p) if refusal is None]
    first = min(variants, key=lambda v: bench.estimate(v, p, bench.configs(v, p)[0]))
    assert not first.reference
    bench.prepare([])
    assert bench.can_measure
