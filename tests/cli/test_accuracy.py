"""``--precision auto`` with ``--accuracy``: from a folder of samples to a plan that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nrt.plan_file import read_plan

from .support import Cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    found.mkdir()
    np.save(found / "a.npy", np.random.default_rng(1).standard_normal((3, 3, 9, 7)).astype("f4"))
    return found


def test_the_whole_way(cli: Cli, model_file: Path, folder: Path, tmp_path: Path) -> None:
    cache, plan = tmp_path / "c.json", tmp_path / "m.nrt"
    cli("calibrate", model_file, "--data", folder, "-o", cache, "--target", "cpu")
    line = ["build", model_file, "-o", plan, "--target", "cpu", "--opt-level", "0"]
    line += ["--shapes", "image:1x3x9x7", "--precision", "auto", "--calibration", cache]
    result = cli(*line, "--accuracy", "relative_error:1e-2", "--accuracy-data", folder)
    assert result.code == 0, result.err
    assert "precision " in result.out
    assert "relative_error at most 0.01" in result.out
    # The frontier: one line per network, the one that was built marked.
    assert "* " in result.out
    assert "fp32: not timed; 0; " in result.out
    note = read_plan(plan).notes["precision"]
    assert "relative_error at most 0.01: " in note
    assert float(note.rpartition(": ")[2]) <= 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--accuracy", "sqnr:20"), "--accuracy without --accuracy-data: give both"),
        (("--accuracy-data", "d"), "--accuracy-data without --accuracy: give both"),
        (("--accuracy", "psnr:1"), "'psnr:1': expected METRIC:BOUND"),
        (
            ("--accuracy", "sqnr:20", "--accuracy-data", "nowhere"),
            "data: nowhere is no folder; expected one of .npy and .npz files",
        ),
    ],
)
def test_errors(
    cli: Cli, model_file: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    line = ["build", model_file, "-o", tmp_path / "m.nrt", "--target", "cpu", "--opt-level", "0"]
    result = cli(*line, "--shapes", "image:1x3x9x7", *options)
    assert result.code == 2
    assert message in result.err


def test_no_kernels_no_accuracy(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    line = ["inspect", model_file, "--svg", tmp_path / "g.svg", "--precision", "auto"]
    assert cli(*line, "--shapes", "image:1x3x9x7").code == 0
    result = cli(*line, "--accuracy", "sqnr:20", "--accuracy-data", tmp_path)
    assert result.code == 2
    assert "--accuracy, --accuracy-data: kernels are not chosen for a picture" in result.err
