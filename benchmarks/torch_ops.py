"""How each ONNX operator is written in PyTorch: one expression, static attributes inlined.

A writer is given an `OnnxCall` and returns the text of one Python expression over ``torch``, ``F``
and ``math``; where the node has several outputs, of a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.torch_fuse import ATTENTION, GELU, LINEAR
from nrt.errors import ImportModelError

__all__ = ["WRITERS", "OnnxCall"]

# ONNX element type -> torch's; floats become the type that the model is converted to.
_FLOATS = (1, 10, 11, 16)
_TYPES = {2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}


class OnnxCall(Protocol):
    """One node, as a writer sees it.

    Attributes:
        name: the node's, for messages.
        attributes: its ONNX attributes.
        outputs: names.
        float_type: PyTorch's name of the model's element type.
    """

    @property
    def name(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    @property
    def outputs(self) -> Sequence[str]: ...

    @property
    def float_type(self) -> str: ...

    def __len__(self) -> int:
        """Number of inputs, trailing absent ones left out."""

    def x(self, slot: int) -> str:
        """The expression of an input; ``None`` for an absent one."""

    def shape(self, slot: int) -> tuple[int, ...]:
        """The shape of an input."""

    def ints(self, slot: int) -> list[int] | None:
        """The whole numbers of an input that is known now; None for an absent one."""

    def constant(self, slot: int) -> Any:
        """An input as a tensor if it is known now, else None."""


Writer = Callable[[OnnxCall], str]


def _unary(function: str) -> Writer:
    return lambda c: f"{function}({c.x(0)})"


def _binary(operator: str) -> Writer:
    return lambda c: f"{c.x(0)} {operator} {c.x(1)}"


def _refuse(call: OnnxCall, what: str) -> ImportModelError:
    return ImportModelError(
        f"node {call.name!r}: {what} has no PyTorch expression here; add it to torch_ops.py"
    )


def _window(call: OnnxCall) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Strides, symmetric pads, and the input, padded by zeros where its pads are not symmetric."""
    if call.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
        raise _refuse(call, f"auto_pad={call.attributes['auto_pad']}")
    rank = len(call.shape(0)) - 2
    strides = tuple(call.attributes.get("strides", (1,) * rank))
    pads = tuple(call.attributes.get("pads", (0,) * 2 * rank))
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return strides, before, call.x(0)
    flat = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    return strides, (0,) * rank, f"F.pad({call.x(0)}, {flat})"


def _conv(call: OnnxCall) -> str:
    strides, pads, x = _window(call)
    rank = len(strides)
    dilations = tuple(call.attributes.get("dilations", (1,) * rank))
    groups = call.attributes.get("group", 1)
    operands = f"{x}, {call.x(1)}, {call.x(2)}"
    return f"F.conv{rank}d({operands}, {strides}, {pads}, {dilations}, {groups})"


def _conv_transpose(call: OnnxCall) -> str:
    strides, pads, x = _window(call)
    rank = len(strides)
    extra = tuple(call.attributes.get("output_padding", (0,) * rank))
    dilations = tuple(call.attributes.get("dilations", (1,) * rank))
    groups = call.attributes.get("group", 1)
    operands = f"{x}, {call.x(1)}, {call.x(2)}"
    return f"F.conv_transpose{rank}d({operands}, {strides}, {pads}, {extra}, {groups}, {dilations})"


def _max_pool(call: OnnxCall) -> str:
    strides, pads, x = _window(call)
    if x != call.x(0):
        raise _refuse(call, "MaxPool with asymmetric pads")
    kernel = tuple(call.attributes["kernel_shape"])
    dilations = tuple(call.attributes.get("dilations", (1,) * len(kernel)))
    ceil = bool(call.attributes.get("ceil_mode", 0))
    return f"F.max_pool{len(kernel)}d({x}, {kernel}, {strides}, {pads}, {dilations}, {ceil})"


def _average_pool(call: OnnxCall) -> str:
    strides, pads, x = _window(call)
    if x != call.x(0):
        raise _refuse(call, "AveragePool with asymmetric pads")
    kernel = tuple(call.attributes["kernel_shape"])
    ceil = bool(call.attributes.get("ceil_mode", 0))
    counted = bool(call.attributes.get("count_include_pad", 0))
    return f"F.avg_pool{len(kernel)}d({x}, {kernel}, {strides}, {pads}, {ceil}, {counted})"


def _global_average_pool(call: OnnxCall) -> str:
    return f"F.adaptive_avg_pool{len(call.shape(0)) - 2}d({call.x(0)}, 1)"


def _gemm(call: OnnxCall) -> str:
    a = call.attributes
    if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
        raise _refuse(call, "Gemm with alpha, beta or transA")
    if a.get("transB", 0):
        return f"F.linear({call.x(0)}, {call.x(1)}, {call.x(2)})"
    if len(call) < 3:
        return f"torch.mm({call.x(0)}, {call.x(1)})"
    return f"torch.addmm({call.x(2)}, {call.x(0)}, {call.x(1)})"


def _batch_norm(call: OnnxCall) -> str:
    scale, bias, mean, variance = (call.x(i) for i in range(1, 5))
    epsilon = call.attributes.get("epsilon", 1e-5)
    return (
        f"F.batch_norm({call.x(0)}, {mean}, {variance}, {scale}, {bias}, False, 0.0, {epsilon!r})"
    )


def _layer_norm(call: OnnxCall) -> str:
    shape = call.shape(0)
    axis = call.attributes.get("axis", -1) % len(shape)
    epsilon = call.attributes.get("epsilon", 1e-5)
    return f"F.layer_norm({call.x(0)}, {shape[axis:]}, {call.x(1)}, {call.x(2)}, {epsilon!r})"


def _clip(call: OnnxCall) -> str:
    low, high = (None if call.constant(i) is None else float(call.constant(i)) for i in (1, 2))
    if (low, high) == (0.0, 6.0):
        return f"F.relu6({call.x(0)})"
    return f"torch.clamp({call.x(0)}, {low}, {high})"


def _softmax(call: OnnxCall) -> str:
    return f"F.softmax({call.x(0)}, {call.attributes.get('axis', -1)})"


def _reduce_mean(call: OnnxCall) -> str:
    axes = call.ints(1) or list(call.attributes.get("axes", ())) or list(range(len(call.shape(0))))
    return f"{call.x(0)}.mean({tuple(axes)}, {bool(call.attributes.get('keepdims', 1))})"


# -- calls that benchmarks.torch_fuse put in ------------------------------------------------------


def _attention(call: OnnxCall) -> str:
    mask = call.x(3)
    scale = call.attributes["scale"]
    # The keys come as the product's right operand: a view swaps them back.
    operands = f"{call.x(0)}, {call.x(1)}.mT, {call.x(2)}"
    return f"F.scaled_dot_product_attention({operands}, attn_mask={mask}, scale={scale!r})"


def _gelu(call: OnnxCall) -> str:
    return f"F.gelu({call.x(0)}, approximate={call.attributes['approximate'].decode()!r})"


def _linear(call: OnnxCall) -> str:
    return f"F.linear({call.x(0)}, {call.x(1)}.mT, {call.x(2)})"


# -- movement ------------------------------------------------------------------------------------


def _reshape(call: OnnxCall) -> str:
    wanted, shape = call.ints(1), call.shape(0)
    assert wanted is not None
    if not call.attributes.get("allowzero", 0):
        wanted = [shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return f"{call.x(0)}.reshape({tuple(wanted)})"


def _flatten(call: OnnxCall) -> str:
    shape, axis = call.shape(0), call.attributes.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if axis == 1:
        return f"torch.flatten({call.x(0)}, 1)"
    rows = 1
    for dim in shape[:axis]:
        rows *= dim
    return f"{call.x(0)}.reshape({rows}, -1)"


def _transpose(call: OnnxCall) -> str:
    default = range(len(call.shape(0)))[::-1]
    return f"{call.x(0)}.permute({tuple(call.attributes.get('perm', default))})"


def _unsqueeze(call: OnnxCall) -> str:
    axes = call.ints(1) or []
    rank = len(call.shape(0)) + len(axes)
    return call.x(0) + "".join(f".unsqueeze({a})" for a in sorted(a % rank for a in axes))


def _squeeze(call: OnnxCall) -> str:
    shape, axes = call.shape(0), call.ints(1)
    if axes is None:
        axes = [i for i, d in enumerate(shape) if d == 1]
    return f"{call.x(0)}.squeeze({tuple(a % len(shape) for a in axes)})"


def _concat(call: OnnxCall) -> str:
    parts = ", ".join(call.x(i) for i in range(len(call)))
    return f"torch.cat([{parts}], {call.attributes['axis']})"


def _split(call: OnnxCall) -> str:
    axis, parts = call.attributes.get("axis", 0), len(call.outputs)
    sizes = call.ints(1) if len(call) > 1 else None
    if sizes is None:
        length = call.shape(0)[axis]
        chunk = -(-length // parts)
        sizes = [min(chunk, length - i * chunk) for i in range(parts)]
    return f"torch.split({call.x(0)}, {sizes}, {axis})"


def _slice(call: OnnxCall) -> str:
    starts, ends = call.ints(1), call.ints(2)
    shape = call.shape(0)
    assert starts is not None
    assert ends is not None
    axes = (call.ints(3) if len(call) > 3 else None) or list(range(len(starts)))
    steps = (call.ints(4) if len(call) > 4 else None) or [1] * len(starts)
    if min(steps) < 1:
        raise _refuse(call, "Slice with a negative step")
    parts = [":"] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        low, high, _ = slice(start, end, step).indices(shape[axis])
        parts[axis % len(shape)] = f"{low}:{high}:{step}"
    return f"{call.x(0)}[{', '.join(parts)}]"


def _gather(call: OnnxCall) -> str:
    shape = call.shape(0)
    axis = call.attributes.get("axis", 0) % len(shape)
    index = call.constant(1)
    if index is not None and index.dim() == 0:
        return f"{call.x(0)}.select({axis}, {int(index) % shape[axis]})"
    if axis == 0 and len(shape) == 2 and call.constant(0) is not None:
        return f"F.embedding({call.x(1)}, {call.x(0)})"
    result = (*shape[:axis], *call.shape(1), *shape[axis + 1 :])
    return f"{call.x(0)}.index_select({axis}, {call.x(1)}.reshape(-1)).reshape({result})"


def _gather_elements(call: OnnxCall) -> str:
    return f"torch.gather({call.x(0)}, {call.attributes.get('axis', 0)}, {call.x(1)})"


def _expand(call: OnnxCall) -> str:
    wanted, shape = call.ints(1), call.shape(0)
    assert wanted is not None
    rank = max(len(wanted), len(shape))
    left = [1] * (rank - len(shape)) + list(shape)
    right = [1] * (rank - len(wanted)) + wanted
    result = tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))
    return f"{call.x(0)}.expand({result})"


def _cast(call: OnnxCall) -> str:
    to = call.attributes["to"]
    if to not in _TYPES and to not in _FLOATS:
        raise _refuse(call, f"Cast to ONNX type {to}")
    return f"{call.x(0)}.to(torch.{_TYPES.get(to, call.float_type)})"


def _range(call: OnnxCall) -> str:
    return f"torch.arange({call.x(0)}, {call.x(1)}, {call.x(2)})"


def _where(call: OnnxCall) -> str:
    return f"torch.where({call.x(0)}, {call.x(1)}, {call.x(2)})"


def _identity(call: OnnxCall) -> str:
    return call.x(0)


WRITERS: Mapping[str, Writer] = {
    "Add": _binary("+"),
    "And": _binary("&"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _binary("/"),
    "Equal": _binary("=="),
    "Erf": _unary("torch.erf"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GreaterOrEqual": _binary(">="),
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "MatMul": _binary("@"),
    "MaxPool": _max_pool,
    "Mul": _binary("*"),
    "Pow": _binary("**"),
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "Relu": _unary("F.relu"),
    "Reshape": _reshape,
    "Sigmoid": _unary("torch.sigmoid"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _unary("torch.sqrt"),
    "Squeeze": _squeeze,
    "Sub": _binary("-"),
    "Tanh": _unary("torch.tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    ATTENTION: _attention,
    GELU: _gelu,
    LINEAR: _linear,
}
"""ONNX operator -> its writer. Constant, Shape and ConstantOfShape are known at conversion."""
