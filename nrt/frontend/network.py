"""Define a network in Python, layer by layer.

::

    net = Network("classifier")
    x = net.input("image", (1, 3, 224, 224))
    y = net.relu(net.conv2d(x, weight, bias, stride=2, padding=3))
    net.output(net.softmax(net.linear(net.flatten(y), w, b)))
    engine = nrt.compile(net)

Weights are NumPy arrays. float64 data takes the dtype of the layer's input, since that is what
NumPy makes unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.dtypes import FP32, DType
from nrt.errors import GraphError, ShapeError
from nrt.frontend.layer import Layers, Operand, Pair, Tensor, as_dtype, pair
from nrt.frontend.network_math import MathLayers
from nrt.frontend.network_movement import MovementLayers
from nrt.ir import ops
from nrt.ir.graph import Graph

__all__ = ["Network", "Tensor"]


class Network(MathLayers, MovementLayers, Layers):
    """A network under construction; `graph` is what the compiler takes.

    Every layer method takes ``name=``; the default is the method's name with a number. Names are
    what reports show and what precision rules match.

    Args:
        name: the network's name.
    """

    def __init__(self, name: str = "network") -> None:
        super().__init__(name)

    @property
    def graph(self) -> Graph:
        """The graph.

        Raises:
            GraphError: no output is set yet.
        """
        if not self._graph.outputs:
            raise GraphError(f"network '{self.name}' has no output; call net.output(tensor)")
        return self._graph

    def input(self, name: str, shape: Sequence[int], dtype: str | DType = FP32) -> Tensor:
        """A new input.

        Raises:
            GraphError: the name is taken.
            ShapeError: a dimension is not a positive number.
        """
        sizes = tuple(int(d) for d in shape)
        if any(d < 1 for d in sizes):
            raise ShapeError(f"input '{name}': shape {sizes}, expected positive numbers")
        label = self.layer_name("input", name)
        return Tensor(self, self._graph.add_input(label, sizes, as_dtype(dtype)))

    def output(self, x: Tensor, name: str | None = None) -> None:
        """Make ``x`` an output, called ``name`` (``output``, ``output_1`` … by default).

        Raises:
            GraphError: ``x`` is of another network, or the name is an output already.
        """
        if x.network is not self:
            raise GraphError(
                f"output: tensor '{x.name}' belongs to network '{x.network.name}', "
                f"not to '{self.name}'"
            )
        outputs = self._graph.outputs
        label = name or ("output" if not outputs else f"output_{len(outputs)}")
        if label in outputs:
            raise GraphError(f"network '{self.name}' has an output '{label}' already")
        self._graph.set_output(label, x.value)

    # -- convolutions and products ---------------------------------------------------------------

    def conv2d(
        self,
        x: Tensor,
        weight: Operand,
        bias: Operand | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        name: str | None = None,
    ) -> Tensor:
        """Convolution of ``x[N, C, H, W]`` with ``weight[K, C/groups, R, S]``, plus ``bias[K]``.

        Args:
            x: images.
            weight: filters.
            bias: one per output channel.
            stride: step of the window.
            padding: zeros around: a number, (height, width), or (top, left, bottom, right).
            dilation: distance of filter elements.
            groups: channels fall into this many independent convolutions.
            name: the layer's name.
        """
        label = self.layer_name("conv2d", name)
        what = f"Conv '{label}'"
        op = ops.Conv(
            pair(f"{what}: stride", stride),
            _pads(what, padding),
            pair(f"{what}: dilation", dilation),
            groups,
        )
        return self.layer("conv2d", op, x, weight, *_optional(bias), name=label)

    def conv_transpose2d(
        self,
        x: Tensor,
        weight: Operand,
        bias: Operand | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        name: str | None = None,
    ) -> Tensor:
        """Transposed convolution of ``x[N, C, H, W]`` with ``weight[C, K/groups, R, S]``."""
        label = self.layer_name("conv_transpose2d", name)
        what = f"ConvTranspose '{label}'"
        op = ops.ConvTranspose(
            pair(f"{what}: stride", stride),
            _pads(what, padding),
            pair(f"{what}: dilation", dilation),
            groups,
            pair(f"{what}: output_padding", output_padding),
        )
        return self.layer("conv_transpose2d", op, x, weight, *_optional(bias), name=label)

    def linear(
        self, x: Tensor, weight: Operand, bias: Operand | None = None, *, name: str | None = None
    ) -> Tensor:
        """``x @ weight.T + bias`` for ``x[…, C]``, ``weight[K, C]`` and ``bias[K]``."""
        label = self.layer_name("linear", name)
        y = self.layer("linear", ops.MatMul(trans_b=True), x, weight, name=label)
        return y if bias is None else self.layer("add", ops.Add(), y, bias, name=f"{label}.bias")

    def matmul(self, a: Operand, b: Operand, *, name: str | None = None) -> Tensor:
        """``a @ b``; leading dimensions broadcast."""
        return self.layer("matmul", ops.MatMul(), a, b, name=name)

    # -- pools -----------------------------------------------------------------------------------

    def max_pool2d(
        self,
        x: Tensor,
        kernel: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """Largest element of each window; the stride is the kernel's size by default."""
        label = self.layer_name("max_pool2d", name)
        what = f"MaxPool '{label}'"
        op = ops.MaxPool(
            pair(f"{what}: kernel", kernel),
            pair(f"{what}: stride", kernel if stride is None else stride),
            _pads(what, padding),
            (1, 1),
            ceil_mode,
        )
        return self.layer("max_pool2d", op, x, name=label)

    def avg_pool2d(
        self,
        x: Tensor,
        kernel: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """Mean of each window; the stride is the kernel's size by default.

        ``count_include_pad`` counts padding as zeros (PyTorch's default; ONNX's is not to).
        """
        label = self.layer_name("avg_pool2d", name)
        what = f"AveragePool '{label}'"
        op = ops.AveragePool(
            pair(f"{what}: kernel", kernel),
            pair(f"{what}: stride", kernel if stride is None else stride),
            _pads(what, padding),
            (1, 1),
            ceil_mode,
            count_include_pad,
        )
        return self.layer("avg_pool2d", op, x, name=label)

    def adaptive_avg_pool2d(self, x: Tensor, size: Pair, *, name: str | None = None) -> Tensor:
        """Mean of equal windows such that the result is ``size`` (height, width).

        Raises:
            ShapeError: the input's size is not a multiple of ``size``.
        """
        label = self.layer_name("adaptive_avg_pool2d", name)
        what = f"AveragePool '{label}'"
        high, wide = pair(f"{what}: size", size)
        divides = len(x.shape) == 4 and high > 0 and wide > 0
        if not divides or x.shape[2] % high or x.shape[3] % wide:
            raise ShapeError(f"{what}: input {list(x.shape)} does not divide into {high}x{wide}")
        kernel = (x.shape[2] // high, x.shape[3] // wide)
        return self.layer(
            "adaptive_avg_pool2d", ops.AveragePool(kernel, kernel, (0, 0, 0, 0)), x, name=label
        )

    def global_avg_pool(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Mean over all spatial dimensions of ``x[N, C, *S]``, kept with size 1."""
        op = ops.Reduce("mean", tuple(range(2, len(x.shape))), True)
        return self.layer("global_avg_pool", op, x, name=name)

    def global_max_pool(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Largest element over all spatial dimensions of ``x[N, C, *S]``, kept with size 1."""
        op = ops.Reduce("max", tuple(range(2, len(x.shape))), True)
        return self.layer("global_max_pool", op, x, name=name)


def _optional(operand: Operand | None) -> tuple[Operand, ...]:
    return () if operand is None else (operand,)


def _pads(what: str, padding: Pair) -> tuple[int, int, int, int]:
    if isinstance(padding, int | np.integer):
        return (int(padding),) * 4
    numbers = tuple(int(p) for p in padding)
    if len(numbers) == 2:
        return (*numbers, *numbers)
    if len(numbers) == 4:
        return numbers
    raise ShapeError(
        f"{what}: padding is {numbers}, expected a number, (height, width) or "
        "(top, left, bottom, right)"
    )
