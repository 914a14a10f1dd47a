"""io= from end to end: what a caller binds, in which memory, with how many launches."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import build
from nrt.ir.evaluate import evaluate
from nrt.plan_check import check_plan
from nrt.trial import relative_error

TOLERANCE = {"fp32": 2e-3, "fp16": 1e-2}
"""Inputs and outputs are rounded to fp16 in either precision."""
IO = {"image": nrt.IOFormat("fp16", "nhwc"), "y": nrt.IOFormat("fp16", "nhwc")}
SHAPE = (2, 3, 17, 15)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)


def network(dense: bool = False) -> nrt.Network:
    """The start of a ResNet; its head is a convolution, or a linear layer."""
    rng = np.random.default_rng(secrets.randbits(32))

    def weights(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    net = nrt.Network("tiny")
    x = net.input("image", SHAPE)
    a = net.relu(net.conv2d(x, weights(8, 3, 3, 3), weights(8), stride=2, padding=1))
    a = net.max_pool2d(a, 2)
    b = net.relu(net.conv2d(a, weights(8, 8, 3, 3), weights(8), padding=1))
    a = net.relu(net.add(a, net.conv2d(b, weights(8, 8, 3, 3), weights(8), padding=1)))
    if dense:
        y = net.linear(net.flatten(net.global_avg_pool(a)), weights(5, 8), weights(5))
    else:
        y = net.conv2d(a, weights(5, 8, 1, 1))
    net.output(y, "y")
    return net


def image() -> Any:
    return np.random.default_rng().random(SHAPE).astype(np.float16)


def error(net: nrt.Network, found: Any, x: Any) -> float:
    wanted = evaluate(net.graph, {"image": x.astype(np.float32)})["y"]
    return relative_error(found.astype(np.float32), wanted)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_an_engine_takes_and_gives_what_is_bound(precision: str, tmp_path: Path) -> None:
    net = network()
    engine = nrt.compile(net, target="cpu", precision=precision, opt_level=0, io=IO)
    assert str(engine.inputs[0]) == "fp16[2, 3, 17, 15]{nhwc}"
    x = image()
    y = engine(x)
    assert (y.shape, y.dtype, y.strides[1]) == ((2, 5, 4, 4), np.float16, 2)
    assert error(net, y, x) <= TOLERANCE[precision]
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(engine(last), y)
    engine.save(tmp_path / "net.nrt")
    again = nrt.load(tmp_path / "net.nrt")
    assert again.inputs == engine.inputs
    np.testing.assert_array_equal(again(last), y)


def steps(io: dict[str, nrt.IOFormat], dense: bool = False, target: str = "cpu") -> int:
    plan = build(network(dense), target=target, precision="fp16", opt_level=0, io=io).plan
    check_plan(plan)
    return len(plan.steps)


def test_each_conversion_launch_is_saved() -> None:
    both = steps({})
    assert steps({"image": IO["image"]}) == steps({"y": IO["y"]}) == both - 1
    assert steps(IO) == both - 2
    # A matrix product stores either type itself.
    assert steps({"image": IO["image"]}, dense=True) == steps({}, dense=True) - 1
    assert steps({"y": nrt.IOFormat("fp16")}, dense=True) == steps({}, dense=True)


@pytest.mark.slow
def test_each_conversion_launch_is_saved_on_a_gpu() -> None:
    both = steps({}, target="cuda:sm_90")
    assert steps(IO, target="cuda:sm_90") == both - 2


def test_formats_are_plain_values() -> None:
    assert nrt.IOFormat() == nrt.IOFormat(None, None)
    assert hash(nrt.IOFormat("fp16")) == hash(nrt.IOFormat(dtype="fp16"))
    with pytest.raises(AttributeError):
        nrt.IOFormat().dtype = "fp16"  # type: ignore[misc]


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(nrt.BuildError, match=r"no input or output 'imag'; did you mean 'image'\?"):
        nrt.compile(network(), target="cpu", io={"imag": nrt.IOFormat("fp16")})


@pytest.mark.gpu
def test_a_gpu_takes_and_gives_channels_last() -> None:
    net = network()
    engine = nrt.compile(net, target="cuda", precision="fp16", opt_level=0, io=IO)
    x = image()
    y = engine(x)
    assert (y.shape, y.dtype, y.strides[1]) == ((2, 5, 4, 4), np.float16, 2)
    assert error(net, y, x) <= TOLERANCE["fp16"]
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    tensor = engine(last, device=True)
    assert tensor.strides == (80, 1, 20, 5)
    np.testing.assert_array_equal(tensor.numpy(), y)
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(x).cuda().contiguous(memory_format=torch.channels_last)
    found = torch.from_dlpack(engine(given, device=True))
    assert found.dtype is torch.float16
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(found.cpu().numpy(), y)
    with pytest.raises(nrt.InputError, match=r"expected dense channels-last memory"):
        engine(given.contiguous())
