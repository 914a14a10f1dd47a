"""Tensor maps: what the copy engine of Hopper must know of a tensor, encoded by the driver."""

from __future__ import annotations

import struct
from typing import Any

from nrt.errors import DeviceError
from nrt.plan import TensorMapArg
from nrt.runtime.driver import bindings, check

__all__ = ["MAP_BYTES", "encode_tensor_map"]

MAP_BYTES = 128
"""Size of an encoded map; its address must be a multiple of 64."""

_TYPES = {
    "fp16": "FLOAT16",
    "bf16": "BFLOAT16",
    "fp32": "FLOAT32",
    "tf32": "TFLOAT32",
    "int32": "INT32",
    "int8": "UINT8",
    "uint8": "UINT8",
    "fp8e4m3": "UINT8",
}


def encode_tensor_map(arg: TensorMapArg, address: int) -> bytes:
    """The 128 bytes of ``arg`` for a tensor at ``address``.

    Raises:
        DeviceError: the element type has no tensor maps, or the driver refuses the map.
    """
    driver = bindings()
    if arg.dtype not in _TYPES:
        raise DeviceError(f"tensor map of {arg.dtype}: expected one of {', '.join(sorted(_TYPES))}")
    swizzle = f"{arg.swizzle}B" if arg.swizzle else "NONE"
    common: list[Any] = [
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    ]
    head: list[Any] = [
        getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TYPES[arg.dtype]}"),
        len(arg.dims),
        address,
        [driver.cuuint64_t(d) for d in arg.dims],
        [driver.cuuint64_t(s) for s in arg.strides],
    ]
    steps = [driver.cuuint32_t(s) for s in arg.steps]
    what = f"tensor map of {arg.dtype} {arg.dims}, box {arg.box}"
    if arg.lower:
        channels, pixels = arg.box
        result = driver.cuTensorMapEncodeIm2col(
            *head, list(arg.lower), list(arg.upper), channels, pixels, steps, *common
        )
    else:
        box = [driver.cuuint32_t(b) for b in arg.box]
        result = driver.cuTensorMapEncodeTiled(*head, box, steps, *common)
    encoded = check(what, result)
    return struct.pack("<16Q", *(int(word) for word in encoded.opaque))
