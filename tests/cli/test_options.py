"""Values of options: what is read and what is refused."""

from __future__ import annotations

import argparse
import re

import pytest

from nrt.cli import options


def test_shapes() -> None:
    assert options.shapes("input:8x3x224x224") == {"input": (8, 3, 224, 224)}
    assert options.shapes("a:1, input:0:2X3") == {"a": (1,), "input:0": (2, 3)}


@pytest.mark.parametrize(
    "text", ["", "input", "input:", ":1x2", "x:1x", "x:0x2", "x:-1x2", "x:1x2.5", "x:1,", "x:1x٣"]
)
def test_bad_shapes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a shape; expected NAME:DIMxDIM"):
        options.shapes(text)


def test_a_shape_twice() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'x' is given twice"):
        options.shapes("x:1,x:2")


def test_precision() -> None:
    assert options.precision("FP16") == "fp16"
    assert options.precision("fp16, fp32") == frozenset({"fp16", "fp32"})


def test_accuracy() -> None:
    assert options.accuracy("sqnr:20") == ("sqnr", 20.0)
    assert options.accuracy("Relative_Error:1e-2") == ("relative_error", 0.01)


@pytest.mark.parametrize("text", ["", "sqnr", "20", "psnr:20", ":20"])
def test_bad_accuracy(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected METRIC:BOUND, such as sqnr:20"):
        options.accuracy(text)


@pytest.mark.parametrize("text", ["sqnr:", "sqnr:-1", "sqnr:nan", "sqnr:a"])
def test_bad_bound(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a number of at least 0 behind the colon"):
        options.accuracy(text)


@pytest.mark.parametrize("text", ["", ",", "fp16,"])
def test_bad_precision(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a precision"):
        options.precision(text)


def test_layers() -> None:
    assert options.layers("head*=FP32") == {"head*": "fp32"}
    assert options.layers("a=b=fp16") == {"a=b": "fp16"}


@pytest.mark.parametrize("text", ["", "head", "=fp32", "head="])
def test_bad_layers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape("expected PATTERN=PRECISION")):
        options.layers(text)


def test_input_file() -> None:
    assert options.input_file("x=a=b.npy") == ("x", "a=b.npy")


@pytest.mark.parametrize("text", ["", "x.npy", "=x.npy", "x="])
def test_bad_input_file(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=FILE"):
        options.input_file(text)


def test_numbers() -> None:
    assert options.seconds("0.25") == 0.25
    assert options.tolerance("1e-3") == 1e-3
    assert options.positive("12") == 12


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf"])
def test_bad_seconds_and_tolerance(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a number of seconds of at least 0"):
        options.seconds(text)
    with pytest.raises(argparse.ArgumentTypeError, match="a number of at least 0, such as 1e-3"):
        options.tolerance(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "many"])
def test_bad_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number of at least 1"):
        options.positive(text)


def test_streams() -> None:
    assert options.streams("4") == 4
    assert options.streams("AUTO") == options.AUTO


@pytest.mark.parametrize("text", ["0", "-1", "", "many", "1.5"])
def test_bad_streams(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1, or auto"):
        options.streams(text)


def test_memory() -> None:
    assert options.memory("2GB") == 2_000_000_000
    with pytest.raises(argparse.ArgumentTypeError, match="'much' is no size of memory; expected"):
        options.memory("much")
