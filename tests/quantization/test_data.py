"""Calibration data in all its forms, and everything that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrt.errors import CalibrationError
from nrt.quantization.data import batches, item_count, items

Array = np.ndarray[Any, np.dtype[Any]]

OPEN = {"x": ("N", 3)}


def run(data: Any, shapes: Any = OPEN) -> list[dict[str, Array]]:
    return list(batches(items(data, list(shapes)), shapes))


def rows(found: list[dict[str, Array]], name: str = "x") -> Array:
    return np.concatenate([f[name] for f in found])


def grid(count: int) -> Array:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


class TensorLike:
    """What frameworks give: convertible, no ndarray."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return grid(2)


@pytest.mark.parametrize(
    "data",
    [
        grid(6),
        [grid(6)],
        [grid(4), grid(6)[4:]],
        list(grid(6)),
        {"x": grid(6)},
        [{"x": grid(5)}, {"x": grid(6)[5]}],
        [(grid(6),)],
        (grid(6)[k : k + 2] for k in (0, 2, 4)),
    ],
    ids=range(8),
)
def test_single_samples_of_every_form(data: Any) -> None:
    found = run(data)
    assert [f["x"].shape for f in found] == [(1, 3)] * 6
    np.testing.assert_array_equal(rows(found), grid(6))


def test_arrays_of_other_libraries() -> None:
    np.testing.assert_array_equal(rows(run([TensorLike(), TensorLike()])), np.tile(grid(2), (2, 1)))


def test_several_inputs() -> None:
    shapes = {"a": ("N", 3), "b": ("N",)}
    for item in ((grid(4), np.arange(4)), {"b": np.arange(4), "a": grid(4)}):
        found = run([item], shapes)
        assert len(found) == 4
        np.testing.assert_array_equal(rows(found, "a"), grid(4))
        np.testing.assert_array_equal(rows(found, "b"), np.arange(4))


def test_a_fixed_batch_is_filled_across_items() -> None:
    found = run([grid(8)[:3], grid(8)[3], grid(8)[4:]], {"x": (4, 3)})
    assert [f["x"].shape for f in found] == [(4, 3)] * 2
    np.testing.assert_array_equal(rows(found), grid(8))


def test_inputs_without_a_common_batch_run_as_they_are() -> None:
    shapes = {"x": ("N", 3), "table": (7, 2), "k": ()}
    item = {"x": grid(2), "table": np.ones((7, 2)), "k": np.array(3)}
    (found,) = run([item], shapes)
    assert {n: a.shape for n, a in found.items()} == {"x": (2, 3), "table": (7, 2), "k": ()}


def test_unknown_ranks_count_samples_too() -> None:
    assert len(run([grid(3)], {"x": None})) == 3


def test_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", grid(6)[4:])
    np.savez(tmp_path / "a.npz", x=grid(6)[:4])
    (tmp_path / "readme.txt").write_text("not data")
    np.testing.assert_array_equal(rows(run(tmp_path)), grid(6))
    np.testing.assert_array_equal(rows(run(str(tmp_path))), grid(6))


def test_counts_of_items(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", grid(1))
    assert item_count(tmp_path) == 1
    assert item_count([1, 2, 3]) == 3
    assert item_count({"x": grid(5)}) == 1
    assert item_count(iter([1])) == 0


WRONG: list[tuple[Any, Any, str]] = [
    (3, OPEN, "data is int; expected an iterable of arrays"),
    ([], OPEN, "data: it holds no samples"),
    (["text"], OPEN, "data item 0 holds elements of type <U4, expected real numbers"),
    ([{"x": [[1], [1, 2]]}], OPEN, "data item 0 is no array: "),
    ([grid(2), {"y": grid(1)}], OPEN, "data item 1 names 'y', expected the inputs 'x'"),
    ([{}], OPEN, "data item 0 names nothing, expected the inputs 'x'"),
    ([(grid(1), grid(1))], OPEN, "data item 0 is 2 arrays for the inputs 'x'"),
    ([grid(1)], {"a": None, "b": None}, "data item 0 is one array for the inputs 'a', 'b'"),
    ([np.ones((2, 4))], OPEN, r"data item 0: input 'x' has shape \[2, 4\], expected \[N, 3\]"),
    ([np.ones((1, 2, 3))], OPEN, r"input 'x' has shape \[1, 2, 3\], expected \[N, 3\]"),
    ([np.ones((2, 4))], {"x": (None, 3)}, r"has shape \[2, 4\], expected \[\?, 3\]"),
    ([grid(7)], {"x": (4, 3)}, "7 samples do not fill batches of 4, .*: 3 are left over"),
    (
        [np.ones((1, 5)), np.ones((1, 6))],
        {"x": (2, "S")},
        "data item 1: samples of one batch differ in shape",
    ),
]


@pytest.mark.parametrize(("data", "shapes", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_data_that_do_not_fit(data: Any, shapes: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        run(data, shapes)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"data: .*nowhere is no folder; expected one of"):
        run(tmp_path / "nowhere")
    with pytest.raises(CalibrationError, match=r"data: .* holds no \.npy and no \.npz files"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CalibrationError, match=rf"data: .*{name} cannot be read"):
        run(tmp_path)
