from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.errors import BuildError
from nrt.ir.ops import Add, Concat, Conv, Mul, Reformat, Relu, Sigmoid, Transpose
from nrt.ir.value import NHWC
from nrt.lowering import lower
from nrt.passes.base import run_pipeline
from nrt.passes.bind_io import IOFormat
from nrt.passes.pipeline import PASSES, PipelineOptions, pass_names, pipeline, required_passes

from .support import (
    FOLDED_TOLERANCE,
    FP16_TOLERANCE,
    Net,
    assert_same,
    densenet_like,
    feeds,
    launches,
    mobilenet_like,
    resnet_like,
    vgg_like,
)

FP16_OPTIONS = PipelineOptions(precision=frozenset({"fp16", "fp32"}))


def through(net: Net, options: PipelineOptions, tolerance: float) -> list[str]:
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), tolerance)
    for value in (*report.graph.inputs, *report.graph.outputs.values()):
        assert value.layout is None
        assert value.dtype is FP32
    return launches(report.graph)


@pytest.mark.parametrize("options", [PipelineOptions(), FP16_OPTIONS], ids=["fp32", "fp16"])
class TestNetworks:
    @staticmethod
    def tolerance(options: PipelineOptions) -> float:
        return FP16_TOLERANCE if "fp16" in options.precision else FOLDED_TOLERANCE

    def test_residual_blocks_are_their_convolutions(self, options: PipelineOptions) -> None:
        # 1 stem, 4 blocks of 2, 2 downsamples; the input's Reformat casts and reorders in one.
        found = Counter(through(resnet_like(), options, self.tolerance(options)))
        assert found == {"Reformat": 1, "Conv": 11, "MaxPool": 1, "PooledMatMul": 1}

    def test_a_norm_before_a_1x1_is_its_prologue(self, options: PipelineOptions) -> None:
        # The second norm of each layer folds into the conv before it; the last one of all is part
        # of the pooling. A transition's average pooling is in its convolution.
        found = Counter(through(densenet_like(), options, self.tolerance(options)))
        others = {"Reformat": 1, "Conv": 8, "Concat": 3, "PooledMatMul": 1}
        assert found == others
        options = replace(options, disabled=frozenset({"fuse-conv-prologue"}))
        found = Counter(through(densenet_like(), options, self.tolerance(options)))
        # Two of the norms are second results: a convolution gives what they and a Concat read.
        assert found == {"Pointwise": 2, **others}
        options = replace(options, disabled=options.disabled | {"fuse-second-output"})
        found = Counter(through(densenet_like(), options, self.tolerance(options)))
        assert found == {"Pointwise": 4, **others}
        options = replace(options, disabled=frozenset({"fuse-average-pool"}))
        found = Counter(through(densenet_like(), options, self.tolerance(options)))
        assert found == {"AveragePool": 1, **others}

    def test_flattening_channels_last_costs_nothing(self, options: PipelineOptions) -> None:
        found = Counter(through(vgg_like(), options, self.tolerance(options)))
        assert found == {"Reformat": 1, "Conv": 4, "MaxPool": 2, "MatMul": 2}

    def test_inverted_residuals(self, options: PipelineOptions) -> None:
        found = Counter(through(mobilenet_like(), options, self.tolerance(options)))
        assert found == {"Reformat": 1, "Conv": 10, "PooledMatMul": 1}


def test_row_major_if_asked() -> None:
    net = vgg_like()
    options = PipelineOptions(channels_last=False)
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert "Reformat" not in launches(report.graph)
    assert all(v.layout is None for v in report.graph.values)


def test_the_main_branch_takes_the_downsampled_skip() -> None:
    report = run_pipeline(resnet_like().graph, pipeline(), verify=True)
    adding = [n for n in report.graph.nodes if isinstance(n.op, Conv) and len(n.inputs) == 4]
    assert len(adding) == 4
    assert all(any("last" in o for o in n.origin) for n in adding)
    assert all(n.inputs[3].layout == NHWC for n in adding)


def test_self_gating_activation_joins_the_convolution() -> None:
    net = Net()
    x = net.conv(net.input(1, 3, 7, 9), 5)
    net.out(net.op(Mul(), x, net.op(Sigmoid(), x)))
    assert through(net, PipelineOptions(), FOLDED_TOLERANCE) == ["Reformat", "Conv", "Reformat"]


def test_a_channels_last_model_is_free_of_copies() -> None:
    """As TensorFlow exports write it: N, H, W, C outside, a Transpose around each convolution."""
    net = Net()
    x = net.op(Transpose((0, 3, 1, 2)), net.input(2, 9, 7, 3))
    y = net.op(Relu(), net.conv(x, 6, bias=True))
    net.out(net.op(Transpose((0, 2, 3, 1)), y))
    assert through(net, PipelineOptions(), FOLDED_TOLERANCE) == ["Conv"]


def test_fp16_stores_the_network_in_half() -> None:
    net = resnet_like()
    report = run_pipeline(net.graph, pipeline(FP16_OPTIONS), verify=True)
    graph = report.graph
    assert {n.output.dtype for n in graph.nodes if isinstance(n.op, Conv)} == {FP16}
    weights = {n.inputs[1].dtype for n in graph.nodes if isinstance(n.op, Conv)}
    assert weights == {FP16}
    assert [n.output.dtype for n in graph.nodes if isinstance(n.op, Reformat)] == [FP16]


@pytest.mark.parametrize("options", [PipelineOptions(), FP16_OPTIONS], ids=["fp32", "fp16"])
def test_every_pass_can_be_switched_off(options: PipelineOptions) -> None:
    net = mobilenet_like()
    data = feeds(net)
    tolerance = FP16_TOLERANCE if "fp16" in options.precision else FOLDED_TOLERANCE
    for name in set(pass_names()) - set(required_passes(pipeline(options))):
        phases = pipeline(replace(options, disabled=frozenset({name})))
        assert name not in {p.name for phase in phases for p in phase.passes}
        report = run_pipeline(net.graph, phases, verify=True)
        assert_same(net.graph, report.graph, data, tolerance)


def test_what_the_options_ask_for_is_required() -> None:
    assert required_passes(pipeline()) == {}
    wanted = PipelineOptions(frozenset({"fp16", "bf16"}), io={"x": IOFormat("fp16")})
    assert required_passes(pipeline(wanted)) == {
        "select-precision": "precision bf16, fp16 is what it makes of the model's own",
        "bind-io": "io= asks for formats that it makes: 'x' (fp16)",
    }
    assert set(required_passes(pipeline(PipelineOptions(layers={"a": "fp32"})))) == {
        "select-precision"
    }
    for name in ("select-precision", "bind-io"):
        with pytest.raises(BuildError, match=f"pass '{name}' cannot be left out: "):
            pipeline(replace(wanted, disabled=frozenset({name, "dead-code"})))


def test_names_are_kebab_case_and_unique() -> None:
    assert len(set(pass_names())) == len(PASSES)
    assert all(n == n.lower() and "_" not in n and " " not in n for n in pass_names())


def test_an_unknown_pass_lists_all() -> None:
    with pytest.raises(BuildError, match=r"pass 'fuse-convs' is unknown; did you mean") as error:
        pipeline(PipelineOptions(disabled=frozenset({"fuse-convs"})))
    assert all(name in str(error.value) for name in pass_names())


def test_siblings_become_one_when_all_else_is_settled() -> None:
    phases = pipeline()
    assert [p.name for p in phases[-1].passes] == [
        "fuse-siblings",
        "fuse-pool-conv",
        "fuse-second-output",
        "merge-pointwise",
        "dead-code",
    ]
    net = Net()
    x = net.input(1, 8, 5, 5)
    for name, channels in (("a", 8), ("b", 16)):
        y = net.op(Relu(), net.norm(net.conv(x, channels, 1, name=name)))
        net.head(net.op(Relu(), net.conv(y, 4)))
        net.graph.set_output(name, net.graph.outputs["y"])
    report = run_pipeline(net.graph, phases, verify=True)
    (note,) = [n for n in report.notes_about("/a") if n.pass_name == "fuse-siblings"]
    assert (note.kind, note.text) == ("fired", "is 'a', 'b': channels 8 + 16")
    assert_same(net.graph, report.graph, feeds(net), FOLDED_TOLERANCE)


@pytest.mark.parametrize("nested", [False, True])
def test_dense_blocks_have_no_copy(nested: bool) -> None:
    """Each layer's result joins all before it, in one Concat or one by one."""
    net = Net()
    parts = [net.conv(net.input(2, 8, 6, 5), 16)]
    joined = parts[0]
    for _ in range(4):
        y = net.conv(net.op(Relu(), net.norm(joined)), 16, 1)
        parts.append(net.conv(net.op(Relu(), net.norm(y)), 8))
        joined = net.op(Concat(1), *((joined, parts[-1]) if nested else parts))
    net.head(net.op(Relu(), net.norm(joined)))
    graph = run_pipeline(net.graph, pipeline(FP16_OPTIONS), verify=True).graph
    assert_same(net.graph, graph, feeds(net), FP16_TOLERANCE)
    found = Counter(t.problem.op.name for t in lower(graph).tasks)
    assert found["Reformat"] == 1  # the input's
    assert found["Conv"] == 9


def test_every_phase_states_its_reason() -> None:
    assert all(phase.reason.endswith(".") for phase in pipeline())


def test_a_fused_layer_keeps_the_names_of_the_model() -> None:
    net = Net()
    x = net.input(1, 3, 5, 5)
    y = net.op(Relu(), net.op(Add(), net.norm(net.conv(x, 3)), x), name="act")
    net.out(y)
    report = run_pipeline(net.graph, pipeline(), verify=True)
    conv = next(n for n in report.graph.nodes if isinstance(n.op, Conv))
    assert conv.name == "conv"
    assert set(conv.origin) == {"/conv", "/bn", "/add", "/act"}
    assert any(n.pass_name == "fuse-conv-epilogue" for n in report.notes_about("/act"))


def test_the_caller_keeps_the_graph() -> None:
    net = vgg_like()
    before = [(n.name, n.op) for n in net.graph.nodes]
    data = feeds(net)
    run_pipeline(net.graph, pipeline(FP16_OPTIONS), verify=True)
    assert [(n.name, n.op) for n in net.graph.nodes] == before
    assert all(v.layout is None and v.dtype is FP32 for v in net.graph.values)
    assert np.all(np.isfinite(data["x"]))
