from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64, INT8, INT32, INT64, DType
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Op
from nrt.ir.ops import (
    LRN,
    Add,
    Cast,
    Concat,
    Conv,
    Exp,
    Gather,
    Greater,
    LayerNormalization,
    MatMul,
    Mul,
    Pointwise,
    Reduce,
    Reformat,
    Relu,
    Reshape,
    Slice,
    Softmax,
    Split,
    Sub,
    Tanh,
    Where,
)
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.select_precision import SelectPrecision

from .support import FP16_TOLERANCE, Net, apply, assert_same, feeds, ops, refusals, sole

BOTH = frozenset({"fp16", "fp32"})
HALF = SelectPrecision(BOTH)
BF16_TOLERANCE = 3e-2
TF32 = SelectPrecision(frozenset({"tf32"}))


def test_fp32_alone_changes_nothing() -> None:
    net = Net()
    net.head(net.conv(net.input(2, 3, 6, 5), 4))
    result = apply(net, SelectPrecision(frozenset({"fp32"})))
    assert not result.changed
    assert {n.text for n in result.notes} == {"fp32: the only permitted precision"}


def test_weights_and_borders() -> None:
    net = Net()
    x = net.input(2, 3, 6, 5)
    net.out(net.op(Add(), net.conv(x, 4, bias=True), net.conv(x, 4)))
    result = apply(net, HALF, FP16_TOLERANCE)
    # One cast of x for both; the sum of two fp16 values is computed by one program.
    assert ops(result.graph) == ["Reformat", "Conv", "Conv", "Add", "Reformat"]
    for node in result.graph.nodes:
        if isinstance(node.op, Conv):
            assert [v.dtype for v in node.inputs] == [FP16, FP16, FP32][: len(node.inputs)]
            assert node.output.dtype is FP16
    assert result.graph.outputs["y"].dtype is FP32
    assert "fp16: the fastest of fp16, fp32" in {n.text for n in result.notes}


def test_bf16_and_tf32_by_name() -> None:
    net = Net()
    net.out(net.conv(net.input(2, 3, 6, 5), 4))
    result = apply(net, SelectPrecision(frozenset({"bf16", "tf32"})), BF16_TOLERANCE)
    assert sole(result.graph, Conv).output.dtype is BF16
    assert not sole(result.graph, Conv).op.tf32
    result = apply(net, TF32)
    assert sole(result.graph, Conv).op.tf32
    assert result.notes[0].text == "tf32: the only permitted precision"
    assert not TF32.run(result.graph).changed


def test_tf32_flags_products_that_stay_fp32() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 6, 5), 4, name="stem")
    x = net.op(Relu(), net.conv(x, 4, name="head"))
    x = net.op(MatMul(trans_b=True), x, net.const(net.random(7, 5)), name="product")
    net.out(net.op(Softmax(), x))
    result = apply(net, SelectPrecision(frozenset({"fp32", "tf32"}), {"stem": "fp32"}))
    flags = {n.name: n.op.tf32 for n in result.graph.nodes if isinstance(n.op, Conv | MatMul)}
    assert flags == {"stem": False, "head": True, "product": True}
    assert {v.dtype for n in result.graph.nodes for v in n.outputs} == {FP32}
    # Asked for again without tf32, it goes.
    again = SelectPrecision(frozenset({"fp32"})).run(result.graph).graph
    assert not any(n.op.tf32 for n in again.nodes if isinstance(n.op, Conv | MatMul))


@pytest.mark.parametrize(
    "permitted", [{"fp16", "tf32"}, {"fp16", "fp32"}, {"fp16", "fp32", "tf32"}]
)
def test_weights_beyond_fp16_fall_back_on_tf32_if_permitted(permitted: set[str]) -> None:
    net = Net()
    w = net.random(4, 3, 3, 3)
    w[0, 0, 0, 0] = 70000
    y = net.op(Conv(), net.input(1, 3, 6, 5), net.const(w, "big"))
    net.out(net.conv(y, 3, name="next"))
    graph = SelectPrecision(frozenset(permitted)).run(net.graph).graph
    big, other = (n for n in graph.nodes if isinstance(n.op, Conv))
    assert big.inputs[0].dtype is FP32
    assert big.op.tf32 == ("tf32" in permitted)
    assert other.inputs[0].dtype is FP16
    assert not other.op.tf32


@pytest.mark.parametrize("end", [Relu(), Tanh()], ids=str)
def test_the_whole_pipeline_keeps_tf32(end: Op) -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 6, 5), 4, name="stem")
    x = net.op(end, net.op(Add(), x, net.const(net.random(4, 1, 1))))
    net.out(net.op(MatMul(), net.op(Reshape((20, 12)), x), net.const(net.random(12, 9))))
    options = PipelineOptions(frozenset({"tf32"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    found = [n.op for n in report.graph.nodes if isinstance(n.op, Conv | MatMul)]
    assert len(found) == 2
    assert all(op.tf32 for op in found)
    assert found[0].epilogue is not None
    assert_same(net.graph, report.graph, feeds(net))


@pytest.mark.parametrize("dtype", [INT8, FP8E4M3], ids=str)
def test_quantized_products_are_left_alone(dtype: DType) -> None:
    net = Net()
    weights = net.const(np.ones((7, 5), dtype.numpy))
    product = net.op(MatMul(out_dtype=FP32), net.input(3, 7, dtype=dtype), weights)
    net.graph.set_output("y", product)
    for permitted in ({"fp16", "fp32"}, {"tf32"}):
        result = SelectPrecision(frozenset(permitted)).run(net.graph.copy())
        assert not result.changed
        assert sole(result.graph, MatMul).op == MatMul(out_dtype=FP32)


UNARY: tuple[Op, ...] = (Softmax(1), LRN(3), Reduce("mean", (2, 3)), Reduce("sum", (1,), False))


@pytest.mark.parametrize("op", UNARY, ids=str)
def test_reductions_read_and_write_half(op: Op) -> None:
    net = Net()
    net.out(net.op(op, net.input(2, 3, 6, 5)))
    result = apply(net, HALF, FP16_TOLERANCE)
    node = sole(result.graph, type(op))
    assert (node.inputs[0].dtype, node.output.dtype) == (FP16, FP16)


def test_parameters_of_a_normalization_stay() -> None:
    net = Net()
    scale, shift = net.const(net.random(7)), net.const(net.random(7))
    net.out(net.op(LayerNormalization(), net.input(3, 7), scale, shift))
    node = sole(apply(net, HALF, FP16_TOLERANCE).graph, LayerNormalization)
    assert [v.dtype for v in node.inputs] == [FP16, FP32, FP32]


def test_small_constants_stay_and_large_ones_shrink() -> None:
    net = Net()
    x = net.input(2, 5, 7)
    y = net.op(Mul(), x, net.const(net.random(7)))
    y = net.op(Add(), y, net.const(net.random(5, 1)))
    net.out(net.op(Add(), y, net.const(net.random(1, 5, 7))))
    nodes = apply(net, HALF, FP16_TOLERANCE).graph.nodes
    assert [n.op.name for n in nodes] == ["Pointwise", "Pointwise", "Add", "Reformat"]
    assert [n.inputs[1].dtype for n in nodes[:3]] == [FP32, FP32, FP16]
    assert [n.output.dtype for n in nodes] == [FP16, FP16, FP16, FP32]


def test_moves_keep_the_type_of_their_data() -> None:
    net = Net()
    x = net.input(2, 4, 6, 5)
    piece = net.op(Slice((0, 0, 0, 0), (2, 2, 6, 5), (1, 1, 1, 1)), x)
    parts = net.node(Split(1, (1, 1)), piece).outputs
    joined = net.op(Concat(1), net.conv(x, 3), parts[0], net.const(net.random(2, 1, 6, 5)))
    net.out(net.op(Reshape((2, 150)), joined))
    graph = apply(net, HALF, FP16_TOLERANCE).graph
    assert sole(graph, Slice).output.dtype is FP32
    assert sole(graph, Split).outputs[1].dtype is FP32
    assert {v.dtype for v in sole(graph, Concat).inputs} == {FP16}
    assert sole(graph, Reshape).output.dtype is FP16


def test_an_embedding_is_stored_in_half() -> None:
    net = Net()
    rows = net.op(Gather(0), net.const(net.random(5, 7)), net.input(3, name="i", dtype=INT64))
    net.out(net.op(Softmax(), rows))
    assert sole(apply(net, HALF, FP16_TOLERANCE).graph, Gather).inputs[0].dtype is FP16


def test_integers_and_doubles_are_left_alone() -> None:
    net = Net()
    count = net.op(Add(), net.input(3, name="i", dtype=INT32), net.const(np.int32(4000)))
    net.out(net.op(Cast(FP32), count))
    net.out(net.op(Exp(), net.input(3, name="d", dtype=FP64)), "z")
    result = apply(net, HALF)
    assert not result.changed
    assert refusals(result.notes) == ["fp32: made of integers", "fp64: the model asks for it"]


def test_comparisons_read_mixed_types() -> None:
    net = Net()
    x = net.input(1, 3, 6, 5)
    y = net.conv(x, 3)
    mask = net.op(Greater(), y, net.const(net.random(3, 1, 1)))
    net.out(net.op(Where(), mask, y, x))
    graph = HALF.run(net.graph.copy()).graph
    assert [n.op.name for n in graph.nodes] == [
        "Reformat",
        "Conv",
        "Pointwise",
        "Pointwise",
        "Reformat",
    ]
    assert_shape_only(net, graph)


def assert_shape_only(net: Net, graph: object) -> None:
    """A mask near its threshold may flip in half precision: compare where it did not."""
    data = feeds(net)
    wanted, found = evaluate(net.graph, data)["y"], evaluate(graph, data)["y"]  # type: ignore[arg-type]
    close = np.isclose(found, wanted, rtol=0.05, atol=0.05)
    assert close.mean() > 0.97


def test_weights_beyond_the_range_stay_fp32() -> None:
    net = Net()
    w = net.random(4, 3, 3, 3)
    w[0, 0, 0, 0] = 70000
    net.out(net.op(Conv(), net.input(1, 3, 6, 5), net.const(w, "big")))
    result = apply(net, HALF)
    assert not result.changed
    assert refusals(result.notes) == ["fp32: weights 'big' go beyond the range of fp16"]
    with pytest.raises(
        BuildError, match="'big' goes beyond the range of fp16 and fp32 is not"
    ) as e:
        SelectPrecision(frozenset({"fp16"})).run(net.graph.copy())
    assert str(e.value).startswith("Conv 'conv'")
    infinite = Net()
    w = np.full((3, 2), -np.inf, np.float32)
    infinite.out(infinite.op(MatMul(), infinite.input(1, 3), infinite.const(w)))
    assert HALF.run(infinite.graph.copy()).changed


@pytest.mark.parametrize("number", [-3.4028235e38, -1e9])
@pytest.mark.parametrize("mask_kind", ["constant", "computed", "scalar"])
@pytest.mark.parametrize("fuse", [False, True])
def test_a_fully_masked_row_is_no_nan(number: float, mask_kind: str, fuse: bool) -> None:
    net = Net()
    scores = net.op(MatMul(trans_b=True), net.input(2, 4, 3), net.input(2, 6, 3, name="k"))
    low = np.float32(number)
    if mask_kind == "constant":
        mask = net.const(np.repeat(np.array([[low], [0], [0], [low]], np.float32), 6, 1))
        scores = net.op(Add(), scores, mask)
    elif mask_kind == "computed":
        keep = net.op(Cast(FP32), net.const(np.array([[0], [1], [1], [1]], np.int32)))
        seen = net.op(Mul(), keep, net.op(Cast(FP32), net.input(4, 6, name="m", dtype=INT32)))
        hidden = net.op(Sub(), net.const(np.float32(1)), seen)
        scores = net.op(Add(), scores, net.op(Mul(), hidden, net.const(low)))
    else:
        rows = net.const(np.array([[True], [False], [False], [True]]))
        scores = net.op(Where(), rows, net.const(low), scores)
    net.out(net.op(Softmax(), scores))
    data = feeds(net)
    if "m" in data:
        data["m"] = (data["m"] > 2).astype(np.int32)
    disabled = frozenset() if fuse else frozenset({"fuse-pointwise", "fuse-matmul-epilogue"})
    options = PipelineOptions(BOTH, disabled=disabled)
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, data, FP16_TOLERANCE)


def test_patterns_narrow_by_own_name_and_by_origin() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 6, 5), 4, name="stem")
    net.out(net.op(Relu(), net.conv(x, 4, name="head")))
    for pattern in ("he*", "/head", "*ead"):
        step = SelectPrecision(BOTH, {pattern: "fp32"})
        result = apply(net, step, FP16_TOLERANCE)
        by_name = {n.name: n for n in result.graph.nodes}
        assert by_name["stem"].output.dtype is FP16
        assert by_name["head"].output.dtype is FP32
        assert by_name["head"].inputs[1].dtype is FP32
        assert f"fp32: asked for by pattern '{pattern}'" in refusals(result.notes)
    first = SelectPrecision(BOTH, {"stem": "fp32", "*": "fp16"})
    result = apply(net, first, FP16_TOLERANCE)
    assert result.graph.node("stem").output.dtype is FP32


def test_a_pattern_may_force_a_move() -> None:
    net = Net()
    net.out(net.op(Reshape((30,)), net.input(6, 5)))
    result = apply(net, SelectPrecision(BOTH, {"reshape": "fp16"}), FP16_TOLERANCE)
    assert ops(result.graph) == ["Reformat", "Reshape", "Reformat"]


@pytest.mark.parametrize(
    ("permitted", "layers", "message"),
    [
        (frozenset(), {}, "precision: the set is empty; permit some of bf16, fp16, fp32, tf32"),
        (
            {"fp12"},
            {},
            "precision: precision 'fp12' is unknown; permitted: bf16, fp16, fp32, fp8, int8, tf32",
        ),
        (
            {"fp32"},
            {"conv": "fp16"},
            "layer pattern 'conv': fp16 is not permitted; permitted: fp32",
        ),
        ({"fp32"}, {"conv": "half"}, "layer pattern 'conv': precision 'half' is unknown"),
        ({"fp32"}, {"convv": "fp32"}, "layer pattern 'convv' matches none of the 2 names"),
    ],
)
def test_wrong_options(permitted: set[str], layers: dict[str, str], message: str) -> None:
    net = Net()
    net.out(net.conv(net.input(2, 3, 6, 5), 4))
    with pytest.raises(BuildError) as error:
        SelectPrecision(frozenset(permitted), layers).run(net.graph)
    assert message in str(error.value)
    if "matches none" in message:
        assert str(error.value).endswith("near it: conv, /conv")


def test_half_models_widen_where_only_fp32_is_permitted() -> None:
    net = Net()
    x = net.input(2, 3, dtype=FP16)
    w = net.const(net.random(3, 4).astype(np.float16))
    net.out(net.op(Exp(), net.op(MatMul(), x, w)))
    result = apply(net, SelectPrecision(frozenset({"fp32"})), FP16_TOLERANCE)
    assert sole(result.graph, MatMul).output.dtype is FP32
    assert sole(result.graph, Exp).output.dtype is FP32
    assert result.graph.outputs["y"].dtype is FP16
    assert [n.op for n in result.graph.nodes if isinstance(n.op, Reformat)] == [
        Reformat(FP32),
        Reformat(FP16),
    ]


def test_a_program_that_was_fused_takes_the_type() -> None:
    net = Net()
    net.out(
        net.op(
            Exp(), net.op(Mul(), net.conv(net.input(1, 3, 6, 5), 3), net.const(net.random(3, 1, 1)))
        )
    )
    options = PipelineOptions(BOTH, disabled=frozenset({"fuse-conv-epilogue", "merge-reformats"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    node = sole(report.graph, Pointwise)
    assert node.op.dtype is FP16
    assert [v.dtype for v in node.inputs] == [FP16, FP32]
