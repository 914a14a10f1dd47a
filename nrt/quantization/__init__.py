"""Quantization: ranges from data, thresholds, weights as integers.

The parts need no kernel and no device; `nrt.calibrate` runs a model to feed them.
"""

from __future__ import annotations

from nrt.quantization.calibration import Calibration, MethodRules, TensorRange
from nrt.quantization.digest import DataDigest, model_digest
from nrt.quantization.histogram import Histogram
from nrt.quantization.taps import Taps, insert_taps
from nrt.quantization.thresholds import METHODS, Curve, Threshold, find_threshold
from nrt.quantization.weights import (
    QuantizedWeights,
    quantize_bias,
    quantize_weights,
    weight_scales,
)

__all__ = [
    "METHODS",
    "Calibration",
    "Curve",
    "DataDigest",
    "Histogram",
    "MethodRules",
    "QuantizedWeights",
    "Taps",
    "TensorRange",
    "Threshold",
    "find_threshold",
    "insert_taps",
    "model_digest",
    "quantize_bias",
    "quantize_weights",
    "weight_scales",
]
