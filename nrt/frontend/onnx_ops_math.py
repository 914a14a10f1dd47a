"""Converters of arithmetic: elementwise ops, activations, products, reductions."""

from __future__ import annotations

from collections.abc import Callable

from nrt.dtypes import FP8E4M3, DType, dtype_from_onnx
from nrt.errors import ImportModelError, ShapeError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.op import Op
from nrt.ir.value import Value

__all__ = [
    "bias_gelu",
    "cast",
    "cast_like",
    "clip",
    "elementwise",
    "fast_gelu",
    "gelu",
    "gemm",
    "reduce",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "swish",
    "variadic",
    "with_floats",
]

Converter = Callable[[NodeContext], Value]


def elementwise(op: type[Op]) -> Converter:
    """The op without attributes, on all inputs."""

    def convert(n: NodeContext) -> Value:
        return n.emit(op(), *n.inputs())

    return convert


def variadic(op: type[Op]) -> Converter:
    """As `elementwise`, for one input or more: one input is returned as it is."""

    def convert(n: NodeContext) -> Value:
        inputs = n.inputs()
        return n.emit(op() if len(inputs) > 1 else ops.Identity(), *inputs)

    return convert


def with_floats(op: Callable[..., Op], **defaults: float) -> Converter:
    """The op with float attributes, whose ONNX defaults are given."""

    def convert(n: NodeContext) -> Value:
        values = {name: n.attr_float(name, default) for name, default in defaults.items()}
        return n.emit(op(**values), *n.inputs())

    return convert


def clip(n: NodeContext) -> Value:
    """Clip: bounds are attributes up to opset 10, inputs since; bounds may be computed."""
    x = n.input(0)
    if n.opset < 11:
        low = n.attr_float("min") if "min" in n.attributes else None
        high = n.attr_float("max") if "max" in n.attributes else None
        return n.emit(ops.Clip(low, high), x)
    bounds = (n.optional(1), n.optional(2))
    constant = all(b is None or b.is_constant for b in bounds)
    if constant and x.dtype.is_float:
        low = None if bounds[0] is None else float(n.scalar(1, "min"))
        high = None if bounds[1] is None else float(n.scalar(2, "max"))
        return n.emit(ops.Clip(low, high), x)
    # Integers keep their exact bounds, and computed bounds stay inputs.
    steps = [
        (o, b, p) for o, b, p in ((ops.Max(), bounds[0], "min"), (ops.Min(), bounds[1], "")) if b
    ]
    if not steps:
        return n.emit(ops.Identity(), x)
    for index, (op, bound, part) in enumerate(steps):
        last = index == len(steps) - 1
        x = n.emit(op, x, bound, part="" if last else part, inner=not last)
    return x


def gelu(n: NodeContext) -> Value:
    """Gelu of opset 20 and of com.microsoft."""
    approximate = n.attr_str("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise ImportModelError(f"{n}: approximate is {approximate!r}, expected none or tanh")
    return n.emit(ops.Gelu(approximate == "tanh"), n.input(0))


def fast_gelu(n: NodeContext) -> Value:
    """com.microsoft FastGelu: the tanh form, with an optional bias."""
    return _biased_gelu(n, approximate=True)


def bias_gelu(n: NodeContext) -> Value:
    """com.microsoft BiasGelu."""
    return _biased_gelu(n, approximate=False)


def _biased_gelu(n: NodeContext, *, approximate: bool) -> Value:
    x, bias = n.input(0), n.optional(1)
    if bias is not None:
        x = n.emit(ops.Add(), x, bias, part="bias", inner=True)
    return n.emit(ops.Gelu(approximate), x)


def swish(default: float) -> Converter:
    """Swish and com.microsoft QuickGelu: ``x * sigmoid(alpha * x)``, with a default ``alpha``."""

    def convert(n: NodeContext) -> Value:
        x = scaled = n.input(0)
        alpha = n.attr_float("alpha", default)
        if alpha != 1:
            factor = n.scalar_like(x, alpha, "alpha")
            scaled = n.emit(ops.Mul(), x, factor, part="scale", inner=True)
        gate = n.emit(ops.Sigmoid(), scaled, part="gate", inner=True)
        return n.emit(ops.Mul(), x, gate)

    return convert


def cast(n: NodeContext) -> Value:
    """Cast: all opsets; fp8 without saturation is refused."""
    try:
        dtype = dtype_from_onnx(n.attr_int("to"))
    except ShapeError as error:
        raise RefusedNodeError(str(error)) from None
    return _cast(n, dtype)


def cast_like(n: NodeContext) -> Value:
    """CastLike: the target's dtype is known."""
    return _cast(n, n.input(1).dtype)


def _cast(n: NodeContext, dtype: DType) -> Value:
    if dtype is FP8E4M3 and not n.attr_int("saturate", 1):
        raise RefusedNodeError(
            "saturate is 0, expected 1: what fp8 cannot hold becomes its largest"
        )
    return n.emit(ops.Cast(dtype), n.input(0))


def gemm(n: NodeContext) -> Value:
    """Gemm: ``alpha * a @ b + beta * c``; factors of 1 and an absent ``c`` leave no node."""
    a, b, c = n.input(0), n.input(1), n.optional(2)
    for label, value in (("A", a), ("B", b)):
        if len(value.shape) != 2:
            raise ImportModelError(f"{n}: {label} has shape {list(value.shape)}, expected a matrix")
    alpha, beta = n.attr_float("alpha", 1.0), n.attr_float("beta", 1.0)
    if beta == 0:
        c = None
    op = ops.MatMul(bool(n.attr_int("transA", 0)), bool(n.attr_int("transB", 0)))
    y = n.emit(op, a, b, inner=alpha != 1 or c is not None)
    if alpha != 1:
        factor = n.scalar_like(y, alpha, "alpha")
        y = n.emit(ops.Mul(), y, factor, part="scale", inner=c is not None)
    if c is None:
        return y
    if beta != 1:
        c = n.emit(ops.Mul(), c, n.scalar_like(c, beta, "beta"), part="scale-bias", inner=True)
    return n.emit(ops.Add(), y, c, part="bias")


def _axes(n: NodeContext) -> tuple[tuple[int, ...], bool]:
    """Axes of a reduction, from the attribute or the input; and whether it reduces nothing."""
    rank = len(n.input(0).shape)
    axes = n.numbers(1, "axes") if n.has(1) else n.attr_ints("axes")
    if axes:
        return tuple(n.axis(a, rank) for a in axes), False
    if n.attr_int("noop_with_empty_axes", 0):
        return (), True
    return tuple(range(rank)), False


def reduce(kind: str) -> Converter:
    """ReduceX: axes are an attribute, and an input since opset 13 (ReduceSum) or 18."""

    def convert(n: NodeContext) -> Value:
        x = n.input(0)
        axes, nothing = _axes(n)
        if nothing:
            if kind in ("l1", "l2"):
                return n.emit(ops.Abs(), x)
            return n.emit(ops.Mul(), x, x) if kind == "sum_square" else n.emit(ops.Identity(), x)
        return n.emit(ops.Reduce(kind, axes, bool(n.attr_int("keepdims", 1))), x)

    return convert


def reduce_log_sum(n: NodeContext) -> Value:
    """ReduceLogSum: ``log(sum(x))``."""
    axes, _ = _axes(n)
    x = n.emit(
        ops.Reduce("sum", axes, bool(n.attr_int("keepdims", 1))), n.input(0), part="sum", inner=True
    )
    return n.emit(ops.Log(), x)


def reduce_log_sum_exp(n: NodeContext) -> Value:
    """ReduceLogSumExp as ``log(sum(exp(x - max))) + max``, so that no exponential overflows."""
    x = n.input(0)
    axes, nothing = _axes(n)
    if nothing:
        return n.emit(ops.Identity(), x)
    keep = bool(n.attr_int("keepdims", 1))
    peak = n.emit(ops.Reduce("max", axes, True), x, part="max", inner=True)
    below = n.emit(ops.Sub(), x, peak, part="below", inner=True)
    powers = n.emit(ops.Exp(), below, part="exp", inner=True)
    total = n.emit(ops.Reduce("sum", axes, True), powers, part="sum", inner=True)
    log = n.emit(ops.Log(), total, part="log", inner=True)
    y = n.emit(ops.Add(), log, peak, inner=not keep)
    if keep:
        return y
    kept = tuple(d for i, d in enumerate(x.shape) if i not in axes)
    return n.emit(ops.Reshape(kept), y, part="squeeze")
