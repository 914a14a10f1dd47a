"""What rounding weights adds to a layer's results on average.

    y[k] = Σ w[k, c, t] · x[c, ·]        E[y'[k] - y[k]] = Σ (w' - w)[k, c, t] · E[x[c]]

Subtracted from the layer's bias, the mean of every output channel is again what it was: the bias
correction of M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, with means that were measured. Activations behind a ReLU have large means,
so this may be much of what rounding weights costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nrt.errors import CalibrationError
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.ir.ops.window import Window

__all__ = ["inside", "mean_shift"]


def mean_shift(
    op: Conv | MatMul, change: Array, means: Sequence[float], shape: Sequence[int]
) -> Array:
    """How much ``change`` of the weights shifts the mean of every output channel, as fp64[K].

    A tap of a convolution counts as often as it lies inside the image: what pads is zero.

    Args:
        op: a convolution of any groups, or a product with a matrix on the right.
        change: new weights minus old ones, in the shape of input 1 of ``op``.
        means: of the channels of input 0: its axis 1 for a convolution, else the last one.
        shape: of input 0.

    Raises:
        CalibrationError: there are not as many means as channels.
    """
    channels = shape[-1] if isinstance(op, MatMul) else shape[1]
    if len(means) != channels:
        raise CalibrationError(
            f"{op.name}: the calibration has {len(means)} means for an input of {channels} "
            "channels; calibrate again"
        )
    expected = np.asarray(means, np.float64)
    difference = change.astype(np.float64)
    if isinstance(op, MatMul):
        return np.asarray(difference @ expected if op.trans_b else expected @ difference)
    window = op.window(difference.shape[2:])
    taps = (difference * inside(window, shape[2:])).reshape(*difference.shape[:2], -1).sum(axis=2)
    grouped = taps.reshape(op.groups, -1, taps.shape[1])
    return np.asarray(grouped @ expected.reshape(op.groups, -1, 1)).reshape(-1)


def inside(window: Window, spatial: Sequence[int]) -> Array:
    """fp64[*kernel]: the share of windows over an image in which a tap does not meet padding."""
    shares: Array = np.ones(())
    counts = window.output("Conv", tuple(spatial))
    for axis, (size, steps) in enumerate(zip(spatial, counts, strict=True)):
        starts = np.arange(steps) * window.strides[axis] - window.begins[axis]
        met = starts + window.dilations[axis] * np.arange(window.kernel[axis])[:, None]
        shares = np.multiply.outer(shares, ((met >= 0) & (met < size)).mean(axis=1))
    return shares
