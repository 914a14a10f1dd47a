"""Weights beside the model file: they are read from its folder, and from nowhere else."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nrt.errors import ImportModelError
from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate

from .build import model, node

WEIGHT = np.random.default_rng().standard_normal((3, 5)).astype(np.float32)
SIZE = WEIGHT.nbytes


def external(**entries: str) -> onnx.ModelProto:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": (3, 5)}, ["y"])
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def save(folder, proto: onnx.ModelProto, data: bytes | None = WEIGHT.tobytes()) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    if data is not None:
        (folder / "weights.bin").write_bytes(data)
    return str(path)


def refuse(path: str, match: str) -> None:
    with pytest.raises(ImportModelError, match=match):
        import_model(path)


def assert_reads(path: str) -> None:
    x = np.zeros((3, 5), np.float32)
    np.testing.assert_array_equal(evaluate(import_model(path), {"x": x})["y"], WEIGHT)


def test_the_whole_file(tmp_path) -> None:
    assert_reads(save(tmp_path, external(location="weights.bin")))


def test_a_part_of_the_file(tmp_path) -> None:
    proto = external(location="weights.bin", offset="64", length=str(SIZE))
    assert_reads(save(tmp_path, proto, bytes(64) + WEIGHT.tobytes() + bytes(9)))


def test_a_file_in_a_folder_below(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w").write_bytes(WEIGHT.tobytes())
    assert_reads(save(tmp_path, external(location="data/w"), None))


def test_a_link_that_stays_inside(tmp_path) -> None:
    path = save(tmp_path, external(location="link"))
    (tmp_path / "link").symlink_to(tmp_path / "weights.bin")
    assert_reads(path)


def test_the_current_folder(tmp_path, monkeypatch) -> None:
    save(tmp_path, external(location="weights.bin"))
    monkeypatch.chdir(tmp_path)
    assert_reads("model.onnx")


def test_a_constant_node(tmp_path) -> None:
    proto = external(location="weights.bin")
    constant = node("Constant", [], ["w"], value=proto.graph.initializer[0])
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, constant)
    assert_reads(save(tmp_path, proto))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/etc/passwd", "'/etc/passwd' is an absolute path; it must be a file inside that folder"),
        ("../secret.bin", "leaves the model's folder through '..'"),
        ("a/../../secret.bin", "leaves the model's folder through '..'"),
        ("..\\secret.bin", "leaves the model's folder through '..'"),
        ("\\\\host\\share", "is an absolute path"),
        ("C:\\secret", "is an absolute path"),
        ("", "is not a file name"),
        ("a\0b", "is not a file name"),
        ("nothing.bin", "is not in the model's folder"),
        (".", "not a regular file|cannot be read"),
    ],
)
def test_places_outside(tmp_path, location, message) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    refuse(save(tmp_path / "model", external(location=location)), message)


def test_no_location(tmp_path) -> None:
    refuse(save(tmp_path, external()), "is not a file name")


def test_a_link_out(tmp_path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    path = save(tmp_path / "model", external(location="link"))
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret.bin")
    refuse(path, "'link' is a link out of the model's folder")


def test_a_linked_folder_out(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w").write_bytes(WEIGHT.tobytes())
    path = save(tmp_path / "model", external(location="sub/w"))
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "other")
    refuse(path, "is a link out of the model's folder")


def test_links_in_a_circle(tmp_path) -> None:
    path = save(tmp_path, external(location="a"))
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refuse(path, "is not in the model's folder")


def test_a_pipe_does_not_block(tmp_path) -> None:
    path = save(tmp_path, external(location="pipe"))
    os.mkfifo(tmp_path / "pipe")
    refuse(path, "'pipe' is not a regular file")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": str(SIZE - 4)}, f"has length {SIZE - 4}, but the tensor needs {SIZE} bytes"),
        ({"length": "-1"}, "length '-1', expected a whole number"),
        ({"offset": "x"}, "offset 'x', expected a whole number"),
        ({"offset": "-8"}, "offset '-8', expected a whole number"),
        ({"offset": "9" * 40}, "expected a whole number"),
        ({"offset": "4"}, f"has {SIZE} bytes, but bytes 4 to {SIZE + 4} are asked for"),
        ({"offset": str(2**60)}, "the file is truncated"),
    ],
)
def test_offsets_and_lengths(tmp_path, entries, message) -> None:
    refuse(save(tmp_path, external(location="weights.bin", **entries)), message)


def test_a_truncated_file(tmp_path) -> None:
    path = save(tmp_path, external(location="weights.bin"), WEIGHT.tobytes()[:-1])
    refuse(path, f"has {SIZE - 1} bytes.*the file is truncated")


def test_huge_shapes_allocate_nothing(tmp_path) -> None:
    proto = external(location="weights.bin")
    proto.graph.initializer[0].dims[:] = [2**31, 2**31]
    refuse(save(tmp_path, proto), "the file is truncated")


def test_a_model_without_a_folder() -> None:
    proto = external(location="weights.bin")
    for source in (proto, proto.SerializeToString()):
        with pytest.raises(
            ImportModelError, match="without a folder; pass the path of the model file"
        ):
            import_model(source)
