"""Formats of inputs and outputs: what the graph computes stays, and little is left to launch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_graphs import run_tasks

from nrt.dtypes import FP16, FP32, FP64, INT64, dtype_from_name
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.layout import same_memory
from nrt.ir.op import Array
from nrt.ir.ops import Add, Concat, Conv, Gather, Mul, Pointwise, Reformat, Relu, Softmax, Transpose
from nrt.ir.value import NHWC
from nrt.ir.verify import verify
from nrt.lowering import lower
from nrt.passes.base import run_pipeline
from nrt.passes.bind_io import ONLY_INPUT, ONLY_OUTPUT, BindIo, IOFormat
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.trial import relative_error

from .support import Net, densenet_like, mobilenet_like, ops, resnet_like
from .test_random_graphs import build, graphs

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2}
SMALLEST = 2.0**-23
"""Twice the smallest number of fp16: below it a relative error says nothing."""
HALF_LAST = IOFormat("fp16", "nhwc")


def bound(net: Net, io: dict[str, IOFormat], precision: str = "fp32") -> Graph:
    """The graph after the pipeline; its values are the model's."""
    options = PipelineOptions(precision=frozenset([precision]), io=io)
    graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    data: dict[str, Array] = {}
    for before, after in zip(net.graph.inputs, graph.inputs, strict=True):
        assert (before.name, before.shape) == (after.name, after.shape)
        half = net.random(*before.shape).astype(np.float16)
        data[before.name] = half if before.dtype.is_float else np.zeros(before.shape, np.int64)
    wanted = evaluate(
        net.graph, {v.name: data[v.name].astype(v.dtype.numpy) for v in net.graph.inputs}
    )
    found = evaluate(graph, {v.name: data[v.name].astype(v.dtype.numpy) for v in graph.inputs})
    assert list(found) == list(wanted)
    for name, array in found.items():
        error = relative_error(array.astype(np.float32), wanted[name].astype(np.float32))
        assert error <= TOLERANCE[precision]
    return graph


@pytest.mark.parametrize("make", [resnet_like, densenet_like, mobilenet_like])
def test_a_channels_last_half_input_needs_no_conversion(make: object) -> None:
    net: Net = make()  # type: ignore[operator]
    plain = bound(net, {}, "fp16")
    graph = bound(net, {"x": HALF_LAST}, "fp16")
    assert (graph.inputs[0].dtype, graph.inputs[0].layout) == (FP16, NHWC)
    assert ops(plain).count("Reformat") == 1
    assert ops(graph).count("Reformat") == 0
    assert len(graph) == len(plain) - 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dtype", [None, "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", [None, "nchw", "nhwc"])
def test_each_side_converts_at_most_once(
    precision: str, dtype: str | None, layout: str | None
) -> None:
    net = Net()
    net.out(net.conv(net.op(Relu(), net.conv(net.input(2, 3, 7, 5), 8)), 6))
    wanted = IOFormat(dtype, layout)
    if dtype == "bf16":  # one rounding more than the model has
        options = PipelineOptions(precision=frozenset([precision]), io={"x": wanted, "y": wanted})
        graph = run_pipeline(net.graph, pipeline(options), verify=True).graph
    else:
        graph = bound(net, {"x": wanted, "y": wanted}, precision)
    for value in (graph.inputs[0], graph.outputs["y"]):
        assert value.dtype is dtype_from_name(dtype or "fp32")
        assert same_memory(value.shape, value.layout, NHWC if layout == "nhwc" else None)
    last, own = layout == "nhwc", (dtype or "fp32") == precision
    # The convolution stores any type itself, in its own order.
    assert ops(graph).count("Reformat") == (not (last and own)) + (not last)


def test_a_producer_stores_the_output_as_bound() -> None:
    net = Net()
    net.out(net.conv(net.input(1, 8, 5, 6), 4))
    graph = bound(net, {"y": HALF_LAST})
    conv = graph.outputs["y"].producer
    assert conv is not None
    assert isinstance(conv.op, Conv)
    assert conv.op.out_dtype is FP16


def test_pointwise_nodes_read_what_is_bound() -> None:
    net = Net()
    x = net.op(Mul(), net.input(2, 3, 6, 5), net.const(np.float32(1 / 57)))
    net.out(net.conv(net.op(Add(), x, net.weight(1, 3, 1, 1)), 4))
    graph = bound(net, {"x": HALF_LAST}, "fp16")
    first = graph.nodes[0]
    assert isinstance(first.op, Pointwise)
    assert first.inputs[0] is graph.inputs[0]
    assert first.output.layout == NHWC
    assert "Reformat" not in ops(graph)[:-1]


def test_outputs_may_be_inputs_and_share_a_value() -> None:
    net = Net()
    x = net.input(2, 3, 4, 5)
    y = net.op(Relu(), x)
    net.out(x, "same")
    net.out(y, "a")
    net.out(y, "b")
    formats = {"x": HALF_LAST, "a": IOFormat("fp16"), "same": HALF_LAST}
    graph = bound(net, formats)
    found = {n: (v.dtype, v.layout == NHWC) for n, v in graph.outputs.items()}
    assert found == {"same": (FP16, True), "a": (FP16, False), "b": (FP32, False)}


def test_an_input_of_several_readers_is_converted_once() -> None:
    net = Net()
    x = net.input(2, 4, 6, 5)
    net.out(net.op(Concat(1), net.conv(x, 4), net.op(Softmax(1), x)))
    graph = bound(net, {"x": IOFormat("fp16")})
    assert len([n for n, _ in graph.consumers(graph.inputs[0])]) <= 2
    casts = [n for n in graph.nodes if isinstance(n.op, Reformat) and n.output.dtype is FP32]
    assert len([n for n in casts if n.inputs[0] is graph.inputs[0]]) <= 2


def test_a_transposed_output_is_a_view() -> None:
    net = Net()
    net.out(net.op(Transpose((0, 3, 1, 2)), net.op(Softmax(), net.input(2, 5, 6, 3))))
    assert ops(bound(net, {"y": IOFormat(layout="nhwc")})) == ["Softmax", "Transpose"]


def test_the_pass_does_nothing_twice_and_nothing_by_default() -> None:
    net = resnet_like()
    assert not BindIo().run(net.graph.copy()).changed
    step = BindIo({"x": HALF_LAST, "y": IOFormat("fp16")})
    result = step.run(net.graph.copy())
    verify(result.graph)
    assert result.changed
    assert {n.kind for n in result.notes} == {"fired"}
    assert not step.run(result.graph).changed


def test_the_only_input_and_output_need_no_name() -> None:
    graph = bound(resnet_like(), {ONLY_INPUT: HALF_LAST, ONLY_OUTPUT: IOFormat("fp16")}, "fp16")
    assert graph.inputs[0].dtype is graph.outputs["y"].dtype is FP16


def test_a_model_of_doubles_may_be_bound_as_less() -> None:
    net = Net()
    net.out(net.op(Softmax(), net.input(3, 5, dtype=FP64)))
    graph = bound(net, {"x": IOFormat("fp32"), "y": IOFormat("fp16")})
    assert (graph.inputs[0].dtype, graph.outputs["y"].dtype) == (FP32, FP16)


def _with_ids() -> Net:
    net = Net()
    table = net.op(Gather(0), net.input(7, 3), net.input(4, name="ids", dtype=INT64))
    net.out(table)
    return net


@pytest.mark.parametrize(
    ("io", "message"),
    [
        (
            {"z": HALF_LAST},
            r"io: the model has no input or output 'z'; inputs: 'x', 'ids'; outputs: 'y'$",
        ),
        ({"idz": HALF_LAST}, r"no input or output 'idz'; did you mean 'ids'\? inputs:"),
        (
            {"ids": IOFormat("fp16")},
            r"input 'ids': cannot be bound as 'fp16', the model's type is int64; leave the type",
        ),
        (
            {"x": IOFormat("uint8")},
            r"input 'x': cannot be bound as 'uint8', the model's type is fp32; expected one of "
            r"fp32, fp16, bf16, fp64$",
        ),
        ({"y": IOFormat("half")}, r"output 'y': cannot be bound as 'half'"),
        (
            {"y": IOFormat(layout="nhwc")},
            r"output 'y': nhwc is the memory order of an image \[N, C, H, W\], and its shape is "
            r"\[4, 3\]; leave the layout out",
        ),
        (
            {"x": IOFormat(layout="chwn")},
            r"input 'x': layout 'chwn' is unknown; expected one of nchw, nhwc",
        ),
        (
            {ONLY_INPUT: IOFormat("fp16")},
            r"format fp16 names no input, and the model has 2; name one of 'x', 'ids'",
        ),
        (
            {"y": IOFormat("fp16"), ONLY_OUTPUT: IOFormat("fp16")},
            r"io: 'y' is given twice; leave one of the two out",
        ),
    ],
)
def test_impossible_formats(io: dict[str, IOFormat], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        run_pipeline(_with_ids().graph, pipeline(PipelineOptions(io=io)))


formats = st.builds(
    IOFormat, st.sampled_from([None, "fp32", "fp16"]), st.sampled_from([None, "nchw", "nhwc"])
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=graphs, wanted=st.lists(formats, min_size=11, max_size=11), half=st.booleans())
def test_random_graphs_keep_their_values_down_to_memory(
    steps: list[tuple[str, int, bool]], wanted: list[IOFormat], half: bool
) -> None:
    net = build(steps)
    values = {v.name: v for v in net.graph.inputs} | dict(net.graph.outputs)
    io = {
        name: wish if len(value.shape) == 4 else IOFormat(wish.dtype)
        for (name, value), wish in zip(values.items(), wanted, strict=False)
        if value.dtype.is_float
    }
    precision = frozenset({"fp16", "fp32"} if half else {"fp32"})
    report = run_pipeline(net.graph, pipeline(PipelineOptions(precision, io=io)), verify=True)
    assert max(r.iteration for r in report.records) < 6
    result = lower(report.graph)
    for name, spec in (*result.inputs, *result.outputs):
        wish = io.get(name, IOFormat())
        assert wish.dtype in (None, spec.dtype.name)
        assert spec.is_nhwc if wish.layout == "nhwc" else spec.is_row_major
    x = net.random(2, 4, 6, 5).astype(np.float16).astype(np.float32)
    bound = {n: x.astype(s.dtype.numpy) for n, s in result.inputs}
    found, exact = run_tasks(result, bound), evaluate(net.graph, {"x": x})
    limit = TOLERANCE["fp16"] * (3 if half else 1)
    for name, array in exact.items():
        difference = np.linalg.norm(found[name].astype(np.float64) - array)
        assert difference <= limit * np.linalg.norm(array) + SMALLEST * np.sqrt(array.size)


def test_a_format_as_text() -> None:
    assert [str(f) for f in (HALF_LAST, IOFormat("bf16"), IOFormat(layout="nchw"), IOFormat())] == [
        "fp16:nhwc",
        "bf16",
        "nchw",
        "as in the model",
    ]
