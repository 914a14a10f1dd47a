"""What the ops share: axes, broadcasting, precision of the references, epilogues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, INT8, INT32, UINT8, DType, dtype_from_numpy
from nrt.errors import ShapeError
from nrt.ir.op import Array, TensorType
from nrt.ir.pointwise import Program

__all__ = [
    "MANY",
    "apply_epilogue",
    "apply_epilogues",
    "array_type",
    "broadcast",
    "cast",
    "check_epilogue",
    "check_float",
    "check_prologue",
    "check_same_dtype",
    "check_stored",
    "check_tf32",
    "compute",
    "dims",
    "finish",
    "kind_of",
    "normalize_axes",
    "normalize_axis",
    "operand",
    "per_axis",
    "product_type",
    "product_types",
]

T = TypeVar("T")

MANY = 2**31 - 1
"""Upper arity of ops that take any number of inputs."""

_KINDS = {"float": "f", "int": "i", "bool": "b"}


def kind_of(dtype: DType) -> str:
    """The pointwise register kind of ``dtype``: ``f``, ``i`` or ``b``."""
    return _KINDS[dtype.kind]


def dims(shape: Sequence[int]) -> str:
    """A shape as messages show it: ``[1,3,224,224]``."""
    return f"[{','.join(map(str, shape))}]"


def normalize_axis(op: str, axis: int, rank: int) -> int:
    """``axis`` counted from the front; ShapeError when a tensor of ``rank`` has none such."""
    if not -rank <= axis < rank:
        raise ShapeError(f"{op}: axis {axis} is out of range for rank {rank}")
    return axis % rank


def normalize_axes(op: str, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`normalize_axis` of each, sorted; ShapeError when one occurs twice."""
    result = tuple(sorted(normalize_axis(op, a, rank) for a in axes))
    if len(set(result)) != len(result):
        raise ShapeError(f"{op}: axes {tuple(axes)} name a dimension twice")
    return result


def broadcast(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcast shape; ShapeError with all shapes when there is none."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise ShapeError(
            f"{op}: shapes {', '.join(map(dims, shapes))} do not broadcast to one shape"
        ) from None


def check_same_dtype(op: str, **types: TensorType) -> None:
    """ShapeError unless all the named inputs have one dtype."""
    if len({t.dtype for t in types.values()}) > 1:
        found = ", ".join(f"{name} is {t.dtype}" for name, t in types.items())
        raise ShapeError(f"{op}: {found}; expected one dtype, insert a Cast")


def check_factors(op: str, **types: TensorType) -> None:
    """ShapeError unless the named two have one dtype, or are uint8 and int8."""
    left, right = (t.dtype for t in types.values())
    if (left, right) != (UINT8, INT8):
        check_same_dtype(op, **types)
        if left is UINT8:
            first, second = types
            raise ShapeError(f"{op}: {first} and {second} are uint8; expected {second} of int8")


def check_tf32(op: str, tf32: bool, dtype: DType) -> None:
    """ShapeError when operands other than fp32 are said to be rounded to tf32."""
    if tf32 and dtype is not FP32:
        raise ShapeError(f"{op}: tf32 rounds fp32 operands, these are {dtype}; expected tf32=False")


_FROM_BYTES = (FP16, BF16, FP32, INT8, UINT8)
_FROM_FP8 = (FP16, BF16, FP32, FP8E4M3)


def product_type(
    op: str, operands: DType, out_dtype: DType | None, epilogue: Program | None
) -> DType:
    """Element type of sums of products of ``operands``.

    Sums of int8 and uint8 are int32, exact, unless ``out_dtype`` says otherwise; behind an
    epilogue, which computes floats, it has to. Sums of fp8 are fp16: they have no type of their
    own, and fp16 keeps what three bits of mantissa hold. All others are of their operands' type.

    Raises:
        ShapeError: sums of bytes are not stored as ``out_dtype``.
    """
    allowed: tuple[DType, ...]
    if operands in BYTES:
        allowed = (*_FROM_BYTES, FP8E4M3) if epilogue is not None else (INT32, *_FROM_BYTES)
        found = out_dtype or INT32
    elif operands is FP8E4M3:
        allowed = (*_FROM_FP8, INT8, UINT8) if epilogue is not None else _FROM_FP8
        found = out_dtype or FP16
    else:
        return out_dtype or operands
    if found not in allowed:
        end = " behind an epilogue" if epilogue is not None else ""
        names = ", ".join(d.name for d in allowed)
        raise ShapeError(
            f"{op}: products of {operands}{end} are stored as {found}; expected out_dtype to be "
            f"one of {names}"
        )
    return found


def product_types(
    op: str,
    operands: DType,
    out_dtype: DType | None,
    second_dtype: DType | None,
    epilogue: Program | None,
) -> tuple[DType, ...]:
    """`product_type` of each result: of two where ``second_dtype`` says what the second is.

    Raises:
        ShapeError: as `product_type`; a second result without an epilogue that computes it.
    """
    first = product_type(op, operands, out_dtype, epilogue)
    if second_dtype is None:
        return (first,)
    if epilogue is None:
        raise ShapeError(
            f"{op}: second_dtype is {second_dtype}, but there is no epilogue with a second result"
        )
    return (first, product_type(op, operands, second_dtype, epilogue))


def check_float(op: str, dtype: DType) -> None:
    """ShapeError unless ``dtype`` is a floating-point type."""
    if not dtype.is_float:
        raise ShapeError(f"{op}: input is {dtype}, expected a float type; insert a Cast")


def per_axis(op: str, name: str, values: Sequence[T], count: int) -> tuple[T, ...]:
    """``values`` as a tuple; ShapeError unless it has ``count`` entries."""
    if len(values) != count:
        raise ShapeError(
            f"{op}: {name} {tuple(values)} has {len(values)} entries, expected {count}"
        )
    return tuple(values)


def compute(x: Array) -> Array:
    """``x`` in the precision that references compute in: small floats as float32, others as is."""
    small = x.dtype.kind not in "biuf" or x.dtype == np.float16
    return x.astype(np.float32) if small else x


def operand(x: Array) -> Array:
    """``x`` as an operand of sums of products: float32 or better, integers exact.

    NumPy's BLAS has no integers: products of 8 and 16 bits sum exactly in float64, wider ones in
    int64 by slow loops.
    """
    if x.dtype.kind in "iu":
        return x.astype(np.float64 if x.dtype.itemsize <= 2 else np.int64)
    return compute(x)


def array_type(x: Array) -> TensorType:
    """The `TensorType` of an array."""
    return TensorType(x.shape, dtype_from_numpy(x.dtype))


def cast(x: Array, dtype: DType) -> Array:
    """A fresh row-major array of ``dtype``.

    Floats become integers by truncation; what lies outside the integer type (or fp8's range)
    saturates and NaN becomes 0, as GPUs convert. Integers wrap around.
    """
    wide = compute(x)
    if dtype.kind == "int" and wide.dtype.kind == "f":
        info = np.iinfo(dtype.numpy)
        wide = np.trunc(np.nan_to_num(wide, nan=0.0))
        # The bounds of 32 and 64 bits are no float32: compare, do not clip.
        high, low = wide >= float(info.max), wide <= float(info.min)
        safe = np.where(high | low, wide.dtype.type(0), wide).astype(dtype.numpy)
        safe[high], safe[low] = info.max, info.min
        return np.asarray(safe)
    if dtype is FP8E4M3:
        wide = np.clip(wide.astype(np.float32), -448.0, 448.0)
    with np.errstate(over="ignore"):
        return np.array(wide, dtype=dtype.numpy, order="C", copy=True)


def finish(x: Array, dtype: DType) -> Array:
    """``x``, which the caller has just computed, as a row-major array of ``dtype``."""
    array = np.asarray(x)
    if array.dtype == dtype.numpy and array.flags.c_contiguous and array.flags.owndata:
        return array
    return cast(array, dtype)


def check_epilogue(
    op: str,
    program: Program,
    shape: tuple[int, ...],
    extras: Sequence[TensorType],
    role: str = "epilogue",
    results: int = 1,
) -> None:
    """Check that ``program`` fits an accumulator of ``shape`` and the ``extras``.

    A prologue is checked alike; its register 0 is an element of the input, and ``shape`` that of
    the input. ``results`` is how many outputs the program has.

    Raises:
        ShapeError: the number or kinds of extras differ from the program's inputs, an extra does
            not broadcast to ``shape``, or the program has more or fewer outputs, or as a prologue
            one that is no float.
    """
    if not program.inputs or program.inputs[0] != "f":
        what = "the float accumulator" if role == "epilogue" else "the input's float element"
        raise ShapeError(f"{op}: {role} register 0 must be {what}")
    if len(program.outputs) != results:
        raise ShapeError(f"{op}: {role} has {len(program.outputs)} outputs, expected {results}")
    if role == "prologue" and program.kinds[program.outputs[0]] != "f":
        kind = program.kinds[program.outputs[0]]
        raise ShapeError(f"{op}: the prologue gives kind '{kind}', expected a float")
    wanted = program.inputs[1:]
    if len(extras) != len(wanted):
        raise ShapeError(f"{op}: got {len(extras)} {role} inputs, the {role} reads {len(wanted)}")
    target = "output" if role == "epilogue" else "input"
    for index, (extra, kind) in enumerate(zip(extras, wanted, strict=True)):
        if kind_of(extra.dtype) != kind:
            raise ShapeError(
                f"{op}: {role} input {index} is {extra.dtype}, the {role} expects kind '{kind}'"
            )
        if broadcast(op, extra.shape, shape) != shape:
            raise ShapeError(
                f"{op}: {role} input {index} has shape {dims(extra.shape)}, which does not "
                f"broadcast to the {target} {dims(shape)}"
            )


def check_stored(op: str, dtype: DType, out_dtype: DType | None, programs: bool) -> DType:
    """Element type in which an op that keeps its input's type stores its result.

    Raises:
        ShapeError: programs around it, or another type of its result, where it has no floats.
    """
    wanted = out_dtype or dtype
    if (programs or wanted is not dtype) and not (dtype.is_float and wanted.is_float):
        raise ShapeError(
            f"{op}: reads {dtype} and stores {wanted}; with a prologue, an epilogue or out_dtype "
            "both are floats"
        )
    return wanted


def check_prologue(
    op: str, program: Program, x: TensorType, operands: Sequence[TensorType]
) -> None:
    """Check that ``program`` fits the elements of ``x`` ``[N, C, *S]`` and its ``operands``.

    Raises:
        ShapeError: x holds no floats (or fp8), the program does not make one float of floats, or
            an operand is missing, is no float, or is not one number per channel.
    """
    if not x.dtype.is_float or x.dtype is FP8E4M3:
        raise ShapeError(f"{op}: a prologue computes floats, the input is {x.dtype}")
    results = "".join(program.kinds[r] for r in program.outputs)
    if set(program.inputs) != {"f"} or results != "f":
        raise ShapeError(
            f"{op}: the prologue makes '{results}' of '{''.join(program.inputs)}', expected one "
            "float of floats"
        )
    wanted = len(program.inputs) - 1
    if len(operands) != wanted:
        raise ShapeError(f"{op}: got {len(operands)} prologue inputs, the prologue reads {wanted}")
    channels = (1, x.shape[1], *[1] * (x.rank - 2))
    for index, operand in enumerate(operands):
        if not operand.dtype.is_float:
            raise ShapeError(f"{op}: prologue input {index} is {operand.dtype}, expected a float")
        if broadcast(op, operand.shape, channels) != channels:
            raise ShapeError(
                f"{op}: prologue input {index} has shape {dims(operand.shape)}, expected a number "
                f"for each of {x.shape[1]} channels: {dims(channels[1:])}"
            )


def apply_epilogue(
    program: Program | None, accumulator: Array, extras: Sequence[Array], dtype: DType
) -> Array:
    """The only result of `apply_epilogues`."""
    (result,) = apply_epilogues(program, accumulator, extras, (dtype,))
    return result


def apply_epilogues(
    program: Program | None, accumulator: Array, extras: Sequence[Array], dtypes: Sequence[DType]
) -> tuple[Array, ...]:
    """``program`` on a freshly computed accumulator and the extras, a result per ``dtypes``.

    int8 and uint8 results are rounded, to even where two are equally near, and saturate; NaN
    becomes 0.
    """
    results: Sequence[Array] = (accumulator,)
    if program is not None:
        if accumulator.dtype.kind != "f":
            accumulator = accumulator.astype(np.float64)
        results = program.evaluate(accumulator, *(compute(e) for e in extras))
    shape = accumulator.shape
    whole = [r if r.shape == shape else np.broadcast_to(r, shape) for r in results]
    return tuple(
        _stored_result(r, dtype, own=len(dtypes) == 1)
        for r, dtype in zip(whole, dtypes, strict=True)
    )


def _stored_result(result: Array, dtype: DType, own: bool) -> Array:
    """As ``dtype``; ``own`` if no other result may be the same array."""
    if dtype in BYTES and result.dtype.kind == "f":
        result = np.rint(result)
    return finish(result if own else np.array(result), dtype)
