"""Calibration data: from whatever the user has to arrays that fit the model's inputs.

Samples are run in batches of the size that the model fixes, one by one where it leaves that open:
kernels may round otherwise at other batch sizes, and the batches of the data are to have no say.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name
from nrt.errors import CalibrationError
from nrt.ir.op import Array

__all__ = ["InputShapes", "Item", "as_input", "batches", "item_count", "items"]

InputShapes = Mapping[str, Sequence[int | str | None] | None]
"""Input name -> dimensions: numbers, or what is open; None where not even their number is known."""

Item = dict[str, Array]

_SUFFIXES = (".npy", ".npz")


def items(data: Any, inputs: Sequence[str]) -> Iterator[Item]:
    """The arrays of ``data`` by input name.

    Args:
        data: a folder of ``.npy`` and ``.npz`` files, read in order of their names; a mapping from
            input name to array; or an iterable of arrays (for one input), sequences of arrays (one
            per input) or mappings.
        inputs: names of the model's inputs.

    Raises:
        CalibrationError: it is none of these, an item does not name the inputs, or there is none.
    """
    empty = True
    for where, item in _raw(data):
        empty = False
        yield _named(where, item, inputs)
    if empty:
        raise CalibrationError("data: it holds no samples; give at least one batch")


def item_count(data: Any) -> int:
    """How many items `items` will give; 0 if that shows only at the end."""
    if isinstance(data, Mapping):
        return 1
    if isinstance(data, str | os.PathLike):
        return len(_files(data))
    return len(data) if hasattr(data, "__len__") else 0


def _raw(data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, str | os.PathLike):
        for path in _files(data):
            yield str(path), _read(path)
    elif isinstance(data, Mapping):
        yield "data", data
    elif isinstance(data, Iterable):
        for number, item in enumerate(data):
            yield f"data item {number}", item
    else:
        raise CalibrationError(
            f"data is {type(data).__name__}; expected an iterable of arrays or of mappings from "
            "input name to array, or a folder of .npy and .npz files"
        )


def _files(folder: str | os.PathLike[str]) -> list[Path]:
    path = Path(folder)
    if not path.is_dir():
        raise CalibrationError(f"data: {path} is no folder; expected one of .npy and .npz files")
    found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    if not found:
        raise CalibrationError(f"data: {path} holds no .npy and no .npz files")
    return found


def _read(path: Path) -> Any:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"data: {path} cannot be read: {error}") from error


def _named(where: str, item: Any, inputs: Sequence[str]) -> Item:
    if isinstance(item, Mapping):
        if set(item) != set(inputs):
            raise CalibrationError(
                f"{where} names {', '.join(map(repr, item)) or 'nothing'}, expected the inputs "
                f"{', '.join(map(repr, inputs))}"
            )
        return {name: _array(where, item[name]) for name in inputs}
    if isinstance(item, list | tuple) and len(item) == len(inputs):
        return {name: _array(where, part) for name, part in zip(inputs, item, strict=True)}
    if isinstance(item, list | tuple) or len(inputs) != 1:
        found = f"{len(item)} arrays" if isinstance(item, list | tuple) else "one array"
        raise CalibrationError(
            f"{where} is {found} for the inputs {', '.join(map(repr, inputs))}; expected one each, "
            "or a mapping by name"
        )
    return {inputs[0]: _array(where, item)}


def _array(where: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise CalibrationError(f"{where} is no array: {error}") from error
    if array.dtype.kind not in "biufV":  # V: bfloat16 and fp8 of ml_dtypes
        raise CalibrationError(
            f"{where} holds elements of type {array.dtype}, expected real numbers"
        )
    return array


def batches(found: Iterable[Item], shapes: InputShapes) -> Iterator[Item]:
    """The samples of ``found`` in arrays of the shapes that the model runs with.

    An array with one dimension fewer than its input is one sample. Where all inputs of an item have
    the same length along their first dimension, these are samples, which are cut and joined to the
    batch that ``shapes`` fix, or to single ones; any other item is run as it is.

    Raises:
        CalibrationError: an array does not fit its input, or a fixed batch is left incomplete.
    """
    batch = _batch(shapes)
    waiting: list[Item] = []
    seen = 0
    for number, item in enumerate(found):
        whole = {n: _fitted(f"data item {number}", n, a, shapes[n]) for n, a in item.items()}
        lengths = {a.shape[0] if a.ndim else -1 for a in whole.values()}
        if batch is None or len(lengths) > 1 or -1 in lengths:
            yield whole
            continue
        rows = _Rows(whole)
        seen += rows.count
        waiting += rows.single()
        while len(waiting) >= batch:
            yield _joined(f"data item {number}", waiting[:batch])
            del waiting[:batch]
    if waiting:
        raise CalibrationError(
            f"data: {seen} samples do not fill batches of {batch}, which the model's shapes fix: "
            f"{len(waiting)} are left over; give a multiple, or a model with an open batch"
        )


@dataclass(frozen=True)
class _Rows:
    """Samples of one item."""

    arrays: Item

    @property
    def count(self) -> int:
        return len(next(iter(self.arrays.values())))

    def single(self) -> list[Item]:
        return [{n: a[k : k + 1] for n, a in self.arrays.items()} for k in range(self.count)]


def _batch(shapes: InputShapes) -> int | None:
    """Samples per run: 1 where all inputs leave it open; None where they do not agree on one."""
    firsts = {None if dims is None else dims[0] if dims else 0 for dims in shapes.values()}
    fixed = {d for d in firsts if isinstance(d, int)}
    if not fixed:
        return 1
    return fixed.pop() if firsts == fixed and len(fixed) == 1 and 0 not in fixed else None


def _joined(where: str, rows: Sequence[Item]) -> Item:
    if len(rows) == 1:
        return rows[0]
    try:
        return {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}
    except ValueError as error:
        raise CalibrationError(f"{where}: samples of one batch differ in shape: {error}") from error


def _fitted(where: str, name: str, array: Array, dims: Sequence[int | str | None] | None) -> Array:
    """``array`` with the number of dimensions that the input has."""
    if dims is None:
        return array
    if array.ndim == len(dims) - 1:
        array = array[None]
    tail = zip(array.shape[1:], dims[1:], strict=False)
    if array.ndim != len(dims) or any(isinstance(d, int) and d != n for n, d in tail):
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        raise CalibrationError(
            f"{where}: input {name!r} has shape {list(array.shape)}, expected [{shown}], with any "
            "number of samples in the first dimension"
        )
    return array


def as_input(array: Array, name: str, dtype: str) -> Array:
    """``array`` in the type of input ``name``; only what loses no kind of number is converted.

    Raises:
        CalibrationError: the data are of another kind, floats for an input of integers.
    """
    wanted = dtype_from_name(dtype).numpy
    if array.dtype == wanted:
        return array
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise CalibrationError(
            f"input {name!r} is {array.dtype} in the data, expected {wanted}: convert it as the "
            "model was trained"
        )
    return array.astype(wanted)
