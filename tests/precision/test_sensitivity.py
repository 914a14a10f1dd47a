"""The order in which layers are given more precision."""

from __future__ import annotations

import numpy as np
import pytest

import nrt
from nrt.passes.pipeline import PipelineOptions
from nrt.precision.sensitivity import harms
from nrt.precision.survey import survey


def test_noise_is_that_of_the_operands(rng: np.random.Generator) -> None:
    """Compared with the noise of a product whose operands are rounded in NumPy."""
    net = nrt.Network("product")
    weights = rng.standard_normal((24, 256)).astype(np.float32)
    x = net.input("x", (64, 256))
    y = net.linear(x, weights, name="first")
    net.output(net.linear(y, rng.standard_normal((16, 24)).astype(np.float32), name="second"), "y")
    data = rng.standard_normal((512, 256)).astype(np.float32)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    options = PipelineOptions(frozenset({"int8", "fp16", "fp32"}), calibration=ranges)
    found = harms(survey(net.graph, options), ranges)["first"]
    scale = ranges["x"].scale
    rounded = np.clip(np.rint(data / scale), -127, 127) * scale
    steps = np.abs(weights).max(axis=1, keepdims=True) / 127
    wanted = data @ weights.T
    noise = rounded @ (np.rint(weights / steps) * steps).T - wanted
    power = float(np.square(noise).sum() / np.square(wanted).sum())
    assert found["int8"] == pytest.approx(power, rel=0.1)
    half = data.astype(np.float16).astype(np.float32)
    halves = weights.astype(np.float16).astype(np.float32)
    small = float(np.square(half @ halves.T - wanted).sum() / np.square(wanted).sum())
    assert small / 4 < found["fp16"] < small * 4
    assert found["fp32"] < found["fp16"] < found["int8"]
