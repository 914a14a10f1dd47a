"""`nrt profile`: text, JSON and files."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .support import Cli

CPU = ("--target", "cpu", "--opt-level", "0", "--shapes", "image:2x3x9x7")


def test_a_model_and_its_files(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    svg, trace, trtexec = (tmp_path / name for name in ("p.svg", "p.trace", "p.json"))
    files = ("--svg", svg, "--trace", trace, "--trtexec", trtexec)
    result = cli("profile", model_file, *CPU, "--repeats", "3", *files)
    assert result.code == 0
    assert result.out.startswith("tiny on ")
    assert result.err.splitlines() == [
        "nrt: note: no --input given: the inputs are random (seed 0)",
        f"nrt: note: {svg}: times and roofline",
        f"nrt: note: {trace}: a trace for chrome://tracing or Perfetto",
        f"nrt: note: {trtexec}: times as of trtexec --exportProfile",
    ]
    ElementTree.parse(svg)
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    count, *rows = json.loads(trtexec.read_text(encoding="utf-8"))
    assert count == {"count": 3}
    assert "conv" in [row["name"] for row in rows]


def test_a_plan_as_json(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan, x = tmp_path / "net.nrt", tmp_path / "x.npy"
    assert cli("build", model_file, "-o", plan, *CPU).code == 0
    np.save(x, np.random.default_rng().random((2, 3, 9, 7), np.float32))
    result = cli("profile", plan, "--input", f"image={x}", "--repeats", "2", "--json")
    assert (result.code, result.err) == (0, "")
    data = json.loads(result.out)
    assert {len(launch["samples"]) for launch in data["launches"]} == {2}
    assert data["sum_seconds"] > 0
    assert data["ceilings"]["source"].startswith("measured")


def test_bad_values(cli: Cli, model_file: Path) -> None:
    result = cli("profile", model_file, *CPU, "--repeats", "0")
    assert result.code == 2
    assert "'0': expected a whole number of at least 1" in result.err
