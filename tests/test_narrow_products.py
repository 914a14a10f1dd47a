"""int8, fp8 and tf32 products through the whole compiler, on the CPU and for GPUs elsewhere."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.dtypes import FP8E4M3, FP32, INT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Conv, MatMul, Reshape
from nrt.ir.pointwise import Builder
from nrt.trial import relative_error

# The same sums, then the same rounding to int8 but where a float is a last bit off a half.
INT8_TOLERANCE = 1e-2
FP8_TOLERANCE = 2e-2

_b = Builder("fff")
SCALE_SHIFT = _b.build(_b("add", _b("mul", 0, 1), 2))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


def fresh() -> np.random.Generator:
    return np.random.default_rng(secrets.randbits(32))


def quantized(dtype: DType) -> nrt.Network:
    """Two convolutions that read and write ``dtype`` with a scale each, and a product to fp32."""
    rng = fresh()

    def factors(*shape: int) -> Any:
        if dtype is INT8:
            return rng.integers(-127, 128, shape, np.int8)
        return rng.standard_normal(shape, np.float32).astype(dtype.numpy)

    def floats(*shape: int, high: float = 0.02) -> Any:
        return rng.uniform(high / 4, high, shape).astype(np.float32)

    high = 0.005 if dtype is INT8 else 0.2
    net = nrt.Network("quantized")
    x = net.input("x", (2, 12, 9, 7), dtype)
    for index, groups in enumerate((1, 4)):
        op = Conv((1, 1), (1, 1, 1, 1), groups=groups, epilogue=SCALE_SHIFT, out_dtype=dtype)
        scale, shift = floats(12, 1, 1, high=high), floats(12, 1, 1, high=9.0)
        weights = factors(12, 12 // groups, 3, 3)
        x = net.layer("conv", op, x, weights, scale, shift, name=f"conv{index}")
    x = net.layer("reshape", Reshape((2, 756)), x)
    product = MatMul(epilogue=SCALE_SHIFT, out_dtype=FP32)
    y = net.layer("product", product, x, factors(756, 5), floats(5), floats(5), name="head")
    net.output(y, "y")
    return net


@pytest.mark.parametrize(("dtype", "name"), [(INT8, "int8"), (FP8E4M3, "fp8")])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"])
def test_quantized_networks_run_on_the_cpu(dtype: DType, name: str, precision: str) -> None:
    net = quantized(dtype)
    engine = nrt.compile(net, target="cpu", opt_level=1, precision=precision)
    found = {layer.name: layer.precision for layer in engine.plan.layers}
    assert {found[n] for n in ("conv0", "conv1", "head")} == {name}
    rng = fresh()
    shape = (2, 12, 9, 7)
    x = rng.integers(-127, 128, shape, np.int8)
    if dtype is FP8E4M3:
        x = rng.standard_normal(shape, np.float32).astype(dtype.numpy)
    wanted = evaluate(net.graph, {"x": x})["y"]
    tolerance = INT8_TOLERANCE if dtype is INT8 else FP8_TOLERANCE
    assert relative_error(engine(x), wanted) <= tolerance


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
@pytest.mark.parametrize(("dtype", "name"), [(INT8, "int8"), (FP8E4M3, "fp8")])
def test_plans_for_a_gpu_elsewhere(dtype: DType, name: str, arch: str) -> None:
    engine = nrt.compile(quantized(dtype), target=f"cuda:{arch}", opt_level=0, precision="fp16")
    found = {layer.name: layer for layer in engine.plan.layers}
    assert {found[n].precision for n in ("conv0", "conv1", "head")} == {name}
    if dtype is INT8:
        assert found["head"].variant.startswith(("matmul_dp4a", "gemm_"))


def test_tf32_reaches_the_layers_of_a_plan() -> None:
    rng = fresh()
    net = nrt.Network("floats")
    x = net.input("x", (2, 8, 9, 7))
    y = net.relu(net.conv2d(x, rng.standard_normal((8, 8, 3, 3), np.float32), name="first"))
    y = net.conv2d(y, rng.standard_normal((8, 8, 3, 3), np.float32), name="second")
    net.output(net.global_avg_pool(y), "y")
    layers = {"first": "fp32"}
    engine = nrt.compile(net, target="cpu", opt_level=0, precision={"tf32", "fp32"}, layers=layers)
    precisions = {layer.name: layer.precision for layer in engine.plan.layers}
    assert (precisions["first"], precisions["second"]) == ("fp32", "tf32")
    data = rng.standard_normal((2, 8, 9, 7)).astype(np.float32)
    wanted = evaluate(net.graph, {"x": data})["y"]
    assert relative_error(engine(data), wanted) <= 1e-5
