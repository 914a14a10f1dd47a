"""fold-batch-norm: a batch normalization disappears into the weights before it.

    a = scale / sqrt(var + ε)        b = bias - mean · a
    norm(conv(x, w) + c) = conv(x, a · w) + (a · c + b)
    norm(average(x)) = average(norm(x))                     behind such a convolution
    norm(x) = a · x + b                                     elsewhere

::

    before   %a = Conv(%x, %w)        %y = BatchNormalization(%a, %scale, %bias, %mean, %var)
    after    %y = Conv(%x, %w', %b')

    before   %a = Concat(%p, %q)      %b = BatchNormalization(%a, ...)    %y = Conv(%b, %w)
    after    %a = Concat(%p, %q)      %b = Pointwise(%a, %a', %b'; mul; add)   %y = Conv(%b, %w)

The second case stays a node of its own, for fusion with what follows it: folding it *forward*
through the convolution would be wrong at the borders, where the padding is zero after, not before,
the shift. Factors are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Add, AveragePool, BatchNormalization, Conv, ConvTranspose, MatMul, Pointwise
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder
from nrt.ir.value import Node, Value
from nrt.passes.pattern import Const, Match, Operand, Pat, Rest, Rule, RulePass, Var

__all__ = ["FoldBatchNorm"]


def _factors(match: Match) -> tuple[Array, Array]:
    """(a, b) of ``norm(x) = a · x + b``, float64, one per channel."""
    scale, bias, mean, var = (
        np.asarray(match.array(n), np.float64) for n in ("scale", "shift", "mean", "var")
    )
    a = scale / np.sqrt(var + match.op("norm").epsilon)
    return a, bias - mean * a


def _constant(graph: Graph, name: str, array: Array, dtype: DType) -> Value:
    return graph.add_constant(name, array.astype(dtype.numpy))


def _unrepresentable(array: Array, dtype: DType) -> bool:
    with np.errstate(over="ignore"):
        return not np.all(np.isfinite(array.astype(dtype.numpy).astype(np.float64)))


def _norm_of(x: Operand) -> Pat:
    return Pat(
        BatchNormalization,
        x,
        Const("scale"),
        Const("shift"),
        Const("mean"),
        Const("var"),
        name="norm",
    )


class _IntoConvolution(Rule):
    """``norm(conv(x, w) + c) = conv(x, a · w) + (a · c + b)``."""

    pattern = _norm_of(
        Pat((Conv, ConvTranspose), Var("x"), Var("w"), Rest("bias"), name="conv", only_use=True)
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        conv = match.nodes["conv"]
        if match.op("conv").epilogue is not None:
            return f"{conv} has an epilogue already"
        if epilogue_slot(conv.op) != 2:
            return f"{conv} has a prologue with operands already"
        for value in (match.values["w"], *match.rest["bias"]):
            if not value.is_constant:
                return f"'{value.name}' of {conv} is not a constant"
        if _unrepresentable(self._weights(match), match.values["w"].dtype):
            return f"the scaled weights of {conv} leave the range of {match.values['w'].dtype}"
        return None

    @staticmethod
    def _weights(match: Match) -> Array:
        a, _ = _factors(match)
        op: Any = match.op("conv")
        w = np.asarray(match.array("w"), np.float64)
        if isinstance(op, Conv):
            return w * a.reshape(-1, *[1] * (w.ndim - 1))
        # w[C, K/g, *R]: group i of the inputs owns the i-th run of output channels.
        grouped = w.reshape(op.groups, -1, *w.shape[1:])
        factor = a.reshape(op.groups, 1, w.shape[1], *[1] * (w.ndim - 2))
        return (grouped * factor).reshape(w.shape)

    def rewrite(self, graph: Graph, match: Match) -> str:
        conv = match.nodes["conv"]
        inputs = self._inputs(graph, match)
        graph.replace_node(match.root, conv.op, inputs, also=[conv], name=conv.name)
        return f"folded into the weights of {conv}"

    def _inputs(self, graph: Graph, match: Match) -> list[Value]:
        """The convolution's input, its new weights and its new bias."""
        conv, x, w = match.nodes["conv"], match.values["x"], match.values["w"]
        a, b = _factors(match)
        for value in match.rest["bias"]:
            b = b + a * np.asarray(value.constant, np.float64)
        weights = _constant(graph, w.name, self._weights(match), w.dtype)
        bias = _constant(graph, f"{conv.name}.bias", b, conv.output.dtype)
        return [x, weights, bias]


class _PastAverage(_IntoConvolution):
    """``norm(average(conv(x, w))) = average(norm(conv(x, w)))``: a mean keeps ``a · x + b``."""

    pattern = _norm_of(
        Pat(
            AveragePool,
            Pat(
                (Conv, ConvTranspose), Var("x"), Var("w"), Rest("bias"), name="conv", only_use=True
            ),
            name="pool",
            only_use=True,
        )
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        pool = match.op("pool")
        if pool.epilogue is not None:
            return f"{match.nodes['pool']} has an epilogue already"
        if any(pool.pads) and pool.count_include_pad:
            return f"{match.nodes['pool']} counts zeros of its padding, which a shift would change"
        return super().check(graph, match)

    def rewrite(self, graph: Graph, match: Match) -> str:
        conv, pool, norm = match.nodes["conv"], match.nodes["pool"], match.root
        folded = graph.replace_node(conv, conv.op, self._inputs(graph, match), also=[norm])
        graph.replace_node(norm, pool.op, [folded.output], also=[pool], name=pool.name)
        return f"folded into the weights of {conv}, before {pool}"


class _IntoMatMul(Rule):
    """``norm(x @ w) = x @ (w · a) + b`` for a matrix ``w`` and a result ``[N, K]``."""

    pattern = _norm_of(Pat(MatMul, Var("x"), Const("w"), name="matmul", only_use=True))

    def check(self, graph: Graph, match: Match) -> str | None:
        matmul, w = match.nodes["matmul"], match.values["w"]
        if len(w.shape) != 2 or len(matmul.output.shape) != 2:
            return f"{matmul} is batched: its last dimension is not the channel"
        if match.op("matmul").epilogue is not None:
            return f"{matmul} has an epilogue already"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        matmul, w = match.nodes["matmul"], match.values["w"]
        a, b = _factors(match)
        columns = a[:, None] if match.op("matmul").trans_b else a
        weights = _constant(graph, w.name, np.asarray(w.constant, np.float64) * columns, w.dtype)
        product = graph.add_node(
            matmul.op, [match.values["x"], weights], name=matmul.name, origin=matmul.origin
        )
        bias = _constant(graph, f"{matmul.name}.bias", b, product.output.dtype)
        graph.replace_node(match.root, Add(), [product.output, bias])
        return f"folded into the weights of {matmul}"


class _IntoPointwise(Rule):
    """``norm(x) = a · x + b``."""

    pattern = _norm_of(Var("x"))

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, x = match.root, match.values["x"]
        b = Builder("fff")
        program = b.build(b("add", b("mul", 0, 1), 2))
        inputs = [x]
        for label, factor in zip(("scale", "shift"), _factors(match), strict=True):
            shaped = factor.reshape(-1, *[1] * (len(x.shape) - 2))
            inputs.append(_constant(graph, f"{node.name}.{label}", shaped, _parameter_dtype(node)))
        graph.replace_node(node, Pointwise(program, node.output.dtype), inputs)
        return "became a multiplication and an addition"


def _parameter_dtype(node: Node) -> DType:
    """The stored parameters' own type, which may be wider than the data's."""
    return max((v.dtype for v in node.inputs[1:]), key=lambda d: d.itemsize)


class _NotConstant(Rule):
    """Says why a batch normalization stays."""

    pattern = Pat(BatchNormalization, Rest("inputs"))

    def check(self, graph: Graph, match: Match) -> str | None:
        loose = [v.name for v in match.rest["inputs"][1:] if not v.is_constant]
        return f"parameters {', '.join(loose)} are not constants"


@dataclass(frozen=True)
class FoldBatchNorm(RulePass):
    """See the module."""

    name: ClassVar[str] = "fold-batch-norm"

    def rules(self) -> tuple[Rule, ...]:
        return (_IntoConvolution(), _PastAverage(), _IntoMatMul(), _IntoPointwise(), _NotConstant())
