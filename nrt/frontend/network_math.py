"""Layers of arithmetic: activations, elementwise ops, reductions, normalizations."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.dtypes import DType
from nrt.frontend.layer import Layers, Operand, Tensor, as_dtype
from nrt.ir import ops

__all__ = ["MathLayers"]


class MathLayers(Layers):
    """Elementwise layers, softmax, reductions and normalizations of a network."""

    # -- activations -----------------------------------------------------------------------------

    def relu(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``max(x, 0)``."""
        return self.layer("relu", ops.Relu(), x, name=name)

    def relu6(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``x`` clipped to 0 … 6."""
        return self.layer("relu6", ops.Clip(0.0, 6.0), x, name=name)

    def clip(
        self, x: Tensor, low: float | None, high: float | None, *, name: str | None = None
    ) -> Tensor:
        """``x`` clipped to ``low`` … ``high``; None leaves a side open."""
        return self.layer("clip", ops.Clip(low, high), x, name=name)

    def sigmoid(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``1 / (1 + exp(-x))``."""
        return self.layer("sigmoid", ops.Sigmoid(), x, name=name)

    def tanh(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Hyperbolic tangent."""
        return self.layer("tanh", ops.Tanh(), x, name=name)

    def leaky_relu(self, x: Tensor, alpha: float = 0.01, *, name: str | None = None) -> Tensor:
        """``x < 0 ? alpha * x : x``."""
        return self.layer("leaky_relu", ops.LeakyRelu(alpha), x, name=name)

    def prelu(self, x: Tensor, slope: Operand, *, name: str | None = None) -> Tensor:
        """``x < 0 ? slope * x : x``; ``slope`` broadcasts (``[C, 1, 1]`` for one per channel)."""
        return self.layer("prelu", ops.PRelu(), x, slope, name=name)

    def elu(self, x: Tensor, alpha: float = 1.0, *, name: str | None = None) -> Tensor:
        """``x < 0 ? alpha * (exp(x) - 1) : x``."""
        return self.layer("elu", ops.Elu(alpha), x, name=name)

    def hard_sigmoid(
        self, x: Tensor, alpha: float = 1 / 6, beta: float = 0.5, *, name: str | None = None
    ) -> Tensor:
        """``alpha * x + beta`` clipped to 0 … 1; the default slope is MobileNetV3's."""
        return self.layer("hard_sigmoid", ops.HardSigmoid(alpha, beta), x, name=name)

    def hard_swish(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``x * hard_sigmoid(x)``."""
        return self.layer("hard_swish", ops.HardSwish(), x, name=name)

    def gelu(self, x: Tensor, *, approximate: bool = False, name: str | None = None) -> Tensor:
        """``x`` times the normal distribution function, exactly or in the tanh form."""
        return self.layer("gelu", ops.Gelu(approximate), x, name=name)

    def silu(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``x * sigmoid(x)``, as two layers."""
        label = self.layer_name("silu", name)
        gate = self.layer("sigmoid", ops.Sigmoid(), x, name=f"{label}.sigmoid")
        return self.layer("silu", ops.Mul(), x, gate, name=label)

    def softplus(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``log(1 + exp(x))``."""
        return self.layer("softplus", ops.Softplus(), x, name=name)

    def dropout(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Dropout at inference: ``x`` itself."""
        return self.layer("dropout", ops.Dropout(), x, name=name)

    # -- functions of one input ------------------------------------------------------------------

    def erf(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Error function."""
        return self.layer("erf", ops.Erf(), x, name=name)

    def exp(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Exponential."""
        return self.layer("exp", ops.Exp(), x, name=name)

    def log(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Natural logarithm."""
        return self.layer("log", ops.Log(), x, name=name)

    def sqrt(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Square root."""
        return self.layer("sqrt", ops.Sqrt(), x, name=name)

    def abs(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Absolute value."""
        return self.layer("abs", ops.Abs(), x, name=name)

    def neg(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """``-x``."""
        return self.layer("neg", ops.Neg(), x, name=name)

    def cast(self, x: Tensor, dtype: str | DType, *, name: str | None = None) -> Tensor:
        """``x`` as another element type, for example ``"fp16"``."""
        return self.layer("cast", ops.Cast(as_dtype(dtype)), x, name=name)

    # -- functions of several inputs, which broadcast ---------------------------------------------

    def add(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a + b``."""
        return self.layer("add", ops.Add(), a, b, name=name)

    def sub(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a - b``."""
        return self.layer("sub", ops.Sub(), a, b, name=name)

    def mul(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a * b``."""
        return self.layer("mul", ops.Mul(), a, b, name=name)

    def div(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a / b``."""
        return self.layer("div", ops.Div(), a, b, name=name)

    def pow(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a`` to the power ``b``."""
        return self.layer("pow", ops.Pow(), a, b, name=name)

    def min(self, *operands: Operand, name: str | None = None) -> Tensor:
        """Smallest of two or more inputs, element by element."""
        return self.layer("min", ops.Min(), *operands, name=name)

    def max(self, *operands: Operand, name: str | None = None) -> Tensor:
        """Largest of two or more inputs, element by element."""
        return self.layer("max", ops.Max(), *operands, name=name)

    def equal(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a == b``, as bool."""
        return self.layer("equal", ops.Equal(), a, b, name=name)

    def less(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a < b``, as bool."""
        return self.layer("less", ops.Less(), a, b, name=name)

    def greater(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a > b``, as bool."""
        return self.layer("greater", ops.Greater(), a, b, name=name)

    def where(
        self, condition: Tensor, a: Operand, b: Operand, *, name: str | None = None
    ) -> Tensor:
        """``condition ? a : b``; ``condition`` is bool."""
        return self.layer("where", ops.Where(), condition, a, b, name=name)

    # -- reductions and normalizations -----------------------------------------------------------

    def reduce(
        self,
        kind: str,
        x: Tensor,
        axes: Sequence[int],
        *,
        keepdims: bool = True,
        name: str | None = None,
    ) -> Tensor:
        """Reduce ``axes`` by mean, sum, max, min, prod, l1, l2 or sum_square."""
        op = ops.Reduce(kind, tuple(axes), keepdims)
        return self.layer(f"reduce_{kind}", op, x, name=name)

    def reduce_mean(
        self, x: Tensor, axes: Sequence[int], *, keepdims: bool = True, name: str | None = None
    ) -> Tensor:
        """Mean over ``axes``."""
        return self.reduce("mean", x, axes, keepdims=keepdims, name=name)

    def reduce_sum(
        self, x: Tensor, axes: Sequence[int], *, keepdims: bool = True, name: str | None = None
    ) -> Tensor:
        """Sum over ``axes``."""
        return self.reduce("sum", x, axes, keepdims=keepdims, name=name)

    def reduce_max(
        self, x: Tensor, axes: Sequence[int], *, keepdims: bool = True, name: str | None = None
    ) -> Tensor:
        """Largest element over ``axes``."""
        return self.reduce("max", x, axes, keepdims=keepdims, name=name)

    def reduce_min(
        self, x: Tensor, axes: Sequence[int], *, keepdims: bool = True, name: str | None = None
    ) -> Tensor:
        """Smallest element over ``axes``."""
        return self.reduce("min", x, axes, keepdims=keepdims, name=name)

    def softmax(self, x: Tensor, axis: int = -1, *, name: str | None = None) -> Tensor:
        """``exp(x) / sum(exp(x))`` along ``axis``."""
        return self.layer("softmax", ops.Softmax(axis), x, name=name)

    def log_softmax(self, x: Tensor, axis: int = -1, *, name: str | None = None) -> Tensor:
        """Logarithm of the softmax along ``axis``."""
        return self.layer("log_softmax", ops.LogSoftmax(axis), x, name=name)

    def batch_norm(
        self,
        x: Tensor,
        scale: Operand,
        bias: Operand,
        mean: Operand,
        var: Operand,
        *,
        epsilon: float = 1e-5,
        name: str | None = None,
    ) -> Tensor:
        """Normalization per channel of ``x[N, C, *S]`` with stored statistics, each ``[C]``."""
        op = ops.BatchNormalization(epsilon)
        return self.layer("batch_norm", op, x, scale, bias, mean, var, name=name)

    def layer_norm(
        self,
        x: Tensor,
        scale: Operand,
        bias: Operand | None = None,
        *,
        axis: int = -1,
        epsilon: float = 1e-5,
        name: str | None = None,
    ) -> Tensor:
        """Normalization over the dimensions from ``axis`` on."""
        rest = () if bias is None else (bias,)
        op = ops.LayerNormalization(axis, epsilon)
        return self.layer("layer_norm", op, x, scale, *rest, name=name)

    def instance_norm(
        self,
        x: Tensor,
        scale: Operand,
        bias: Operand,
        *,
        epsilon: float = 1e-5,
        name: str | None = None,
    ) -> Tensor:
        """Normalization of each channel of each sample by its own statistics."""
        op = ops.InstanceNormalization(epsilon)
        return self.layer("instance_norm", op, x, scale, bias, name=name)

    def lrn(
        self,
        x: Tensor,
        size: int,
        *,
        alpha: float = 1e-4,
        beta: float = 0.75,
        bias: float = 1.0,
        name: str | None = None,
    ) -> Tensor:
        """Local response normalization over ``size`` channels."""
        return self.layer("lrn", ops.LRN(size, alpha, beta, bias), x, name=name)
