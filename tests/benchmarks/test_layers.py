"""layers: what a layer's problem is in each precision, and the table of its kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nrt
from benchmarks import layers
from benchmarks.zoo_models import Zoo
from nrt.dtypes import FP16, INT8, UINT8
from nrt.errors import InputError
from nrt.tuner import Candidate, Choice
from tests.benchmarks.small_zoo import make_zoo


@pytest.fixture
def calibration(tmp_path: Path, rng: np.random.Generator) -> Path:
    make_zoo(tmp_path)
    model = Zoo(tmp_path).load("vgg19", 2)
    data = rng.random((2, 2, 3, 9, 5), np.float32)
    path = tmp_path / "ranges.json"
    nrt.calibrate(model, list(data), target="cpu", method="minmax").save(path)
    return path


def test_a_layer_in_both_precisions(tmp_path: Path, calibration: Path) -> None:
    model = Zoo(tmp_path).load("vgg19", 2)
    found = layers.layer_problems(model, ["*"], ["int8", "fp16"], calibration)
    types = {key[1]: [t.dtype for t in p.inputs[:2]] for key, p in found.items()}
    assert types == {"int8": [UINT8, INT8], "fp16": [FP16, FP16]}
    # It gives the network's result, whatever it multiplies.
    assert len({p.y for p in found.values()}) == 1
    with pytest.raises(InputError, match="no layer nothing; products are "):
        layers.layer_problems(model, ["nothing"], ["int8"], calibration)


def test_prints_every_candidate(
    tmp_path: Path, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models", tmp_path, "--only", "vgg19", "--batch", 2, "--layers", "*"]
    options += ["--calibration", calibration, "--target", "cpu", "--opt-level", 0]
    assert layers.main([str(o) for o in options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(", int8: Conv" in line for line in lines) == 1
    assert sum(", fp16: Conv" in line for line in lines) == 1
    assert len(lines) > 4


def test_table_has_the_fastest_first() -> None:
    candidates = (
        Candidate("slow", "(1,)", 3e-6),
        Candidate("refused", "", None, "too narrow"),
        Candidate("fast", "(2,)", 1.25e-6, "chosen"),
    )
    text = layers.table(Choice(None, (), 1.25e-6, "", candidates))
    assert [line.split()[0] for line in text.splitlines()] == ["1.25", "3.00", "–"]
    assert text.splitlines()[-1].endswith("refused   too narrow")
