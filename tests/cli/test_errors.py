"""Errors: one message on stderr, exit code 2; interruption 130; bugs are not hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nrt
from nrt.cli import inspect
from nrt.errors import UnsupportedOpError
from nrt.plan import Plan

from .support import Cli, FakeEngine


def test_a_file_that_is_missing(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    for line in (
        ("build", path, "-o", "p"),
        ("run", path),
        ("bench", path),
        ("inspect", path),
        ("compare", path),
    ):
        result = cli(*line)
        assert result == (2, "", f"nrt: error: {path}: No such file or directory\n")


def test_a_folder_is_no_file(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", tmp_path).err == f"nrt: error: {tmp_path}: Is a directory\n"


def test_run_wants_a_plan(cli: Cli, model_file: Path) -> None:
    result = cli("run", model_file)
    assert result.code == 2
    assert f"{model_file} is not a plan" in result.err
    assert f"nrt build {model_file} -o tiny.nrt" in result.err


def test_compare_wants_a_plan_behind_plan(cli: Cli, model_file: Path) -> None:
    result = cli("compare", model_file, "--plan", model_file)
    assert result.code == 2
    assert "is not a plan" in result.err


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A file that starts as plans do and holds nothing else; named as a model."""
    from nrt.plan_file import MAGIC

    path = tmp_path / "plan.onnx"
    path.write_bytes(MAGIC)
    return path


def test_a_plan_where_a_model_is_wanted(cli: Cli, plan_file: Path) -> None:
    result = cli("build", plan_file, "-o", "x.nrt")
    assert "is a plan, compiled already; expected a model" in result.err
    result = cli("compare", plan_file)
    assert f"the reference needs the model: nrt compare MODEL --plan {plan_file}" in result.err


@pytest.mark.parametrize("command", ["bench", "inspect"])
def test_build_options_for_a_plan(cli: Cli, plan_file: Path, command: str) -> None:
    result = cli(command, plan_file, "--precision", "fp16", "--opt-level", "0")
    assert result.code == 2
    assert f"--precision, --opt-level: {plan_file} is a plan, compiled already" in result.err


def test_a_truncated_plan(cli: Cli, plan_file: Path) -> None:
    for command in ("run", "inspect", "bench"):
        result = cli(command, plan_file)
        assert result.code == 2
        assert result.err.startswith("nrt: error: ")
        assert str(plan_file) in result.err


def test_the_folder_of_the_plan_is_missing(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    result = cli("build", model_file, "-o", tmp_path / "none" / "x.nrt")
    assert f"the folder {tmp_path / 'none'} does not exist; make it first" in result.err


def test_an_error_of_several_lines(
    cli: Cli, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = UnsupportedOpError([("a", "Foo", "", 17), ("b", "Bar", "com.x", 1)])

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "open_plan", fail)
    result = cli("inspect", model_file)
    assert result == (2, "", f"nrt: error: {error}\n")
    assert "node b: op Bar" in result.err


def test_verbose_adds_the_traceback(
    cli: Cli, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise nrt.BuildError("no kernel")

    monkeypatch.setattr(inspect, "open_plan", fail)
    for line in (("--verbose", "inspect", model_file), ("inspect", model_file, "--verbose")):
        result = cli(*line)
        assert result.code == 2
        assert result.err.startswith("Traceback")
        assert result.err.endswith("nrt: error: no kernel\n")


def test_interruption(cli: Cli, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "open_plan", interrupt)
    result = cli("inspect", model_file)
    assert (result.code, result.err) == (130, "\nnrt: interrupted\n")


def test_a_bug_is_not_hidden(cli: Cli, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(inspect, "open_plan", bug)
    with pytest.raises(TypeError, match="a bug"):
        cli("inspect", model_file)


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """`nrt --version | true` must not end in a traceback."""
    code = "import sys; from nrt.cli import main; sys.exit(main(['doctor', '--json']))"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(nrt.__file__).parents[1],
            env={**os.environ, "NRT_CACHE_DIR": str(tmp_path)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_inputs_that_do_not_fit(
    cli: Cli, tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nrt.cli.run.require_plan", lambda path: None)
    monkeypatch.setattr(nrt, "load", lambda path: FakeEngine(plan, lambda x: {"y": x["x"]}))
    good, other, wide = (tmp_path / f"{n}.npy" for n in ("good", "other", "wide"))
    np.save(good, np.ones((2, 8), np.float32))
    np.save(other, np.ones((2, 7), np.float32))
    np.save(wide, np.ones((2, 8), np.float64))
    text = tmp_path / "text.npy"
    text.write_text("no array")
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, a=np.ones(3))
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([object()]), allow_pickle=True)
    for arguments, message in (
        (("z=" + str(good),), "input 'z' is unknown; expected 'x'"),
        ((f"x={good}", f"x={good}"), "input 'x' is given twice"),
        ((f"x={other}",), "input 'x' has shape 2x7, expected 2x8"),
        ((f"x={wide}",), "input 'x' has dtype float64, expected fp32"),
        ((f"x={text}",), f"{text} is not a .npy file"),
        ((f"x={pickled}",), f"{pickled} is not a .npy file"),
        ((f"x={archive}",), f"{archive} is an archive; expected one array"),
        ((f"x={tmp_path / 'none'}",), f"{tmp_path / 'none'}: No such file"),
    ):
        result = cli("run", "p", *(a for i in arguments for a in ("--input", i)))
        assert result.code == 2, arguments
        assert message in result.err
    result = cli("run", "p", "--input", f"x={good}")
    assert (result.code, result.err) == (0, "")


def test_no_time_to_measure() -> None:
    from nrt.insight.latency import summarize

    with pytest.raises(nrt.InputError, match="give a longer --duration"):
        summarize([])
