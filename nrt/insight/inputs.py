"""Inputs for a run that nobody gave data for, and the check of those that somebody did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import InputError
from nrt.plan import IoSpec
from nrt.runtime.arrays import laid_out

__all__ = ["check_inputs", "random_inputs"]

Array = np.ndarray[Any, np.dtype[Any]]


def random_inputs(specs: Sequence[IoSpec], seed: int = 0) -> dict[str, Array]:
    """Arrays for ``specs``: floats are uniform in [0, 1), booleans and integers 0 or 1.

    Floats lie in the range of an unnormalized image. White noise of zero mean is harder: rounding
    grows many times larger on it (ResNet-50 with random weights in fp16: 2e-2 against 1e-3), with
    the same graph in NumPy too. Give such data with ``--input``. 0 and 1 are valid as token,
    segment and mask, where larger integers may index past a table. Arrays lie in memory as the
    bindings do.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for spec in specs:
        dtype = dtype_from_name(spec.dtype)
        if dtype.is_float:
            values: Array = rng.random(spec.shape)
        else:
            values = rng.integers(0, 2, spec.shape)
        arrays[spec.name] = laid_out(spec, np.asarray(values, dtype=dtype.numpy))
    return arrays


def check_inputs(specs: Sequence[IoSpec], arrays: Mapping[str, Array]) -> None:
    """Check names, shapes and dtypes.

    Raises:
        InputError: a name is unknown or missing, or an array has another shape or dtype.
    """
    known = {spec.name: spec for spec in specs}
    for name in arrays:
        if name not in known:
            raise InputError(f"input {name!r} is unknown; expected {', '.join(map(repr, known))}")
    for name, spec in known.items():
        if name not in arrays:
            raise InputError(f"input {name!r} is missing; give it with --input {name}=FILE.npy")
        array = arrays[name]
        if array.shape != spec.shape:
            raise InputError(
                f"input {name!r} has shape {_dims(array.shape)}, expected {_dims(spec.shape)}"
            )
        if array.dtype != dtype_from_name(spec.dtype).numpy:
            raise InputError(f"input {name!r} has dtype {array.dtype}, expected {spec.dtype}")


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
