"""Which ONNX operators nrt imports: one table, operator -> converter.

To support an operator, write a converter (`nrt.frontend.onnx_node.NodeContext` -> values) and add a
line. ``If`` and local functions are not here: `nrt.frontend.onnx_model` resolves them. Operators
that a user registered come after those of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nrt.frontend import onnx_ops_constant as constant
from nrt.frontend import onnx_ops_conv as conv
from nrt.frontend import onnx_ops_math as math
from nrt.frontend import onnx_ops_movement as movement
from nrt.frontend import onnx_ops_norm as norm
from nrt.frontend import onnx_ops_quantize as quantize
from nrt.frontend import onnx_ops_resize as resize
from nrt.frontend.onnx_node import Converted, NodeContext
from nrt.frontend.onnx_registered import registered
from nrt.ir import ops

__all__ = [
    "CONVERTERS",
    "MICROSOFT",
    "canonical_domain",
    "converter",
    "has_converter",
    "is_built_in",
]

Converter = Callable[[NodeContext], Converted]

CONVERTERS: Mapping[str, Converter] = {
    # convolutions, pools, products
    "Conv": conv.conv,
    "ConvTranspose": conv.conv_transpose,
    "MaxPool": conv.max_pool,
    "AveragePool": conv.average_pool,
    "GlobalAveragePool": norm.global_pool("mean"),
    "GlobalMaxPool": norm.global_pool("max"),
    "Gemm": math.gemm,
    "MatMul": math.elementwise(ops.MatMul),
    # quantization
    "QuantizeLinear": quantize.quantize_linear,
    "DequantizeLinear": quantize.dequantize_linear,
    "DynamicQuantizeLinear": quantize.dynamic_quantize_linear,
    "QLinearConv": quantize.qlinear_conv,
    "QLinearMatMul": quantize.qlinear_matmul,
    "ConvInteger": quantize.conv_integer,
    "MatMulInteger": quantize.matmul_integer,
    # normalizations
    "BatchNormalization": norm.batch_normalization,
    "InstanceNormalization": norm.instance_normalization,
    "LayerNormalization": norm.layer_normalization,
    "LRN": norm.lrn,
    "Softmax": norm.softmax(ops.Softmax),
    "LogSoftmax": norm.softmax(ops.LogSoftmax),
    "Dropout": norm.dropout,
    # activations
    "Relu": math.elementwise(ops.Relu),
    "LeakyRelu": math.with_floats(ops.LeakyRelu, alpha=0.01),
    "PRelu": math.elementwise(ops.PRelu),
    "Elu": math.with_floats(ops.Elu, alpha=1.0),
    "Selu": math.with_floats(
        ops.Selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875
    ),
    "Celu": math.with_floats(ops.Celu, alpha=1.0),
    "ThresholdedRelu": math.with_floats(ops.ThresholdedRelu, alpha=1.0),
    "Clip": math.clip,
    "Sigmoid": math.elementwise(ops.Sigmoid),
    "HardSigmoid": math.with_floats(ops.HardSigmoid, alpha=0.2, beta=0.5),
    "HardSwish": math.elementwise(ops.HardSwish),
    "Swish": math.swish(1.0),
    "Tanh": math.elementwise(ops.Tanh),
    "Gelu": math.gelu,
    "Mish": math.elementwise(ops.Mish),
    "Softplus": math.elementwise(ops.Softplus),
    "Softsign": math.elementwise(ops.Softsign),
    # arithmetic
    "Abs": math.elementwise(ops.Abs),
    "Ceil": math.elementwise(ops.Ceil),
    "Cos": math.elementwise(ops.Cos),
    "Erf": math.elementwise(ops.Erf),
    "Exp": math.elementwise(ops.Exp),
    "Floor": math.elementwise(ops.Floor),
    "IsNaN": math.elementwise(ops.IsNaN),
    "Log": math.elementwise(ops.Log),
    "Neg": math.elementwise(ops.Neg),
    "Not": math.elementwise(ops.Not),
    "Reciprocal": math.elementwise(ops.Reciprocal),
    "Round": math.elementwise(ops.Round),
    "Sign": math.elementwise(ops.Sign),
    "Sin": math.elementwise(ops.Sin),
    "Sqrt": math.elementwise(ops.Sqrt),
    "Add": math.elementwise(ops.Add),
    "Sub": math.elementwise(ops.Sub),
    "Mul": math.elementwise(ops.Mul),
    "Div": math.elementwise(ops.Div),
    "Pow": math.elementwise(ops.Pow),
    "Min": math.variadic(ops.Min),
    "Max": math.variadic(ops.Max),
    "Sum": math.variadic(ops.Sum),
    "Mean": math.variadic(ops.Mean),
    "Equal": math.elementwise(ops.Equal),
    "Less": math.elementwise(ops.Less),
    "LessOrEqual": math.elementwise(ops.LessOrEqual),
    "Greater": math.elementwise(ops.Greater),
    "GreaterOrEqual": math.elementwise(ops.GreaterOrEqual),
    "And": math.elementwise(ops.And),
    "Or": math.elementwise(ops.Or),
    "Xor": math.elementwise(ops.Xor),
    "Where": math.elementwise(ops.Where),
    "Cast": math.cast,
    "CastLike": math.cast_like,
    # reductions
    "ReduceMean": math.reduce("mean"),
    "ReduceSum": math.reduce("sum"),
    "ReduceMax": math.reduce("max"),
    "ReduceMin": math.reduce("min"),
    "ReduceProd": math.reduce("prod"),
    "ReduceL1": math.reduce("l1"),
    "ReduceL2": math.reduce("l2"),
    "ReduceSumSquare": math.reduce("sum_square"),
    "ReduceLogSum": math.reduce_log_sum,
    "ReduceLogSumExp": math.reduce_log_sum_exp,
    # movement
    "Identity": movement.identity,
    "Reshape": movement.reshape,
    "Flatten": movement.flatten,
    "Squeeze": movement.squeeze,
    "Unsqueeze": movement.unsqueeze,
    "Transpose": movement.transpose,
    "Concat": movement.concat,
    "Slice": movement.slice_,
    "Split": movement.split,
    "Expand": movement.expand,
    "Tile": movement.tile,
    "Gather": movement.gather,
    "GatherElements": movement.gather_elements,
    "Pad": movement.pad,
    "Trilu": movement.trilu,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
    "Resize": resize.resize,
    "Upsample": resize.upsample,
    # constants
    "Constant": constant.constant,
    "ConstantOfShape": constant.constant_of_shape,
    "Shape": constant.shape,
    "Size": constant.size,
    "Range": constant.range_,
    "NonZero": constant.non_zero,
    "EyeLike": constant.eye_like,
}
"""Operators of the domain ai.onnx."""

MICROSOFT: Mapping[str, Converter] = {
    "Gelu": math.gelu,
    "FastGelu": math.fast_gelu,
    "BiasGelu": math.bias_gelu,
    "QuickGelu": math.swish(1.702),
    "QuantizeLinear": quantize.quantize_linear,
    "DequantizeLinear": quantize.dequantize_linear,
}
"""Operators of the domain com.microsoft."""

_DOMAINS: Mapping[str, Mapping[str, Converter]] = {"": CONVERTERS, "com.microsoft": MICROSOFT}


def canonical_domain(domain: str) -> str:
    """``ai.onnx`` has two names; ``""`` is the shorter."""
    return "" if domain == "ai.onnx" else domain


def converter(domain: str, op_type: str) -> Converter | None:
    """The converter of an operator, or None."""
    domain = canonical_domain(domain)
    return _DOMAINS.get(domain, {}).get(op_type) or registered(domain, op_type)


def is_built_in(domain: str, op_type: str) -> bool:
    """Whether nrt itself imports the operator."""
    domain = canonical_domain(domain)
    return op_type in _DOMAINS.get(domain, {}) or (domain == "" and op_type == "If")


def has_converter(domain: str, op_type: str) -> bool:
    """Whether the importer knows the operator; ``If`` it resolves itself."""
    known = converter(domain, op_type) is not None
    return known or (canonical_domain(domain) == "" and op_type == "If")
