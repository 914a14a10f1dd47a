"""The digits: a split that stays what it is, and three trained networks that int8 kernels take."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from examples.digits.data import PARTS, Digits, load, split

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "digits"
NETWORKS = ("plain", "residual", "separable")
SPLIT = {
    "test": "e9cef53b7e6e076e",
    "calibration": "6997d800ac24485d",
    "train": "33310eb4f13e08ee",
}
"""Part -> the start of the SHA-256 of its indices."""


@pytest.fixture(scope="module")
def parts() -> dict[str, Digits]:
    return load()


def test_every_image_is_in_one_part(parts: dict[str, Digits]) -> None:
    assert {name: len(part) for name, part in parts.items()} == {
        "test": 539,
        "calibration": 179,
        "train": 1079,
    }
    together = np.concatenate([part.indices for part in parts.values()])
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))
    content = {part: {image.tobytes() for image in digits.images} for part, digits in parts.items()}
    assert not content["test"] & (content["train"] | content["calibration"])


def test_the_split_is_fixed(parts: dict[str, Digits]) -> None:
    found = {
        name: hashlib.sha256(part.indices.astype("<i8").tobytes()).hexdigest()[:16]
        for name, part in parts.items()
    }
    assert found == SPLIT


def test_each_class_has_its_share(parts: dict[str, Digits]) -> None:
    totals = sum(np.bincount(part.labels, minlength=10) for part in parts.values())
    for name, part in parts.items():
        wanted = PARTS[name] * totals
        assert np.abs(np.bincount(part.labels, minlength=10) - wanted).max() <= 1


def test_uneven_classes_are_dealt_out_without_a_rest() -> None:
    labels = np.repeat([0, 1, 2], [1, 7, 13])
    found = split(labels)
    counts = {name: np.bincount(labels[i], minlength=3).tolist() for name, i in found.items()}
    assert counts == {"test": [0, 2, 4], "calibration": [0, 1, 1], "train": [1, 4, 8]}


def test_images_and_labels_belong_together(parts: dict[str, Digits]) -> None:
    test = parts["test"]
    assert test.images.dtype == np.float32
    assert test.images.shape == (539, 1, 8, 8)
    assert test.images.min() == 0
    assert test.images.max() == 1
    # The first image of the data is a 0, the last an 8.
    first, last = (next(p for p in parts.values() if i in p.indices) for i in (0, 1796))
    assert first.labels[0] == 0
    assert last.labels[-1] == 8
    np.testing.assert_array_equal(first.images[0, 0, 0] * 16, [0, 0, 5, 13, 9, 1, 0, 0])


def test_accuracy_counts_the_largest_score() -> None:
    digits = Digits(np.zeros((3, 1, 8, 8), np.float32), np.array([1, 0, 9]), np.arange(3))
    scores = np.zeros((3, 10))
    scores[[0, 1, 2], [1, 2, 9]] = 1
    assert digits.accuracy(scores) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_good_in_onnx_runtime(name: str, parts: dict[str, Digits]) -> None:
    session = onnxruntime.InferenceSession(
        FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )
    for size in (1, 539):
        test = parts["test"]
        images, labels = test.images[:size], test.labels[:size]
        (scores,) = session.run(["scores"], {"image": images})
        assert scores.shape == (size, 10)
        assert Digits(images, labels, test.indices[:size]).accuracy(scores) >= 0.98


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_small_and_says_nothing_of_its_maker(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    assert path.stat().st_size < 200 * 1024
    assert b"/site-packages" not in path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}[""] >= 17
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    tensors = {t.name: t for t in model.graph.initializer}
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors.values())
    convs = [n for n in model.graph.node if n.op_type == "Conv"]
    assert all(tensors[n.input[1]].dims[0] % 16 == 0 for n in convs)
    assert not any(n.metadata_props for n in model.graph.node)
