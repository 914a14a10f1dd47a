"""Markdown tables and the marked sections of pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.protocol import Results, run_header
from nrt.errors import InputError


def _time(median: float) -> dict[str, Any]:
    return {"median": median, "p90": median * 1.1, "samples": 20}


def _write(folder: Path, name: str, kind: str, cases: list[dict[str, Any]]) -> None:
    results = Results.open(folder / f"{name}.json", kind, ("id",), run_header("c0ffee"))
    for index, case in enumerate(cases):
        results.add({"id": index, **case})


MODELS = [
    {
        "model": "resnet50",
        "batch": 8,
        "precision": "fp16",
        "times": {"nrt": _time(1e-3), "eager": _time(3e-3), "compile": _time(0.5e-3)},
    },
    {"model": "unet", "batch": 1, "precision": "fp16", "times": {"compile": _time(2e-3)}},
    {
        "model": "vgg19",
        "batch": 1,
        "precision": "fp16",
        "times": {"nrt": _time(1e-3), "compile": _time(2e-3)},
    },
]


def test_models_print_times_ratios_and_their_mean(tmp_path: Path) -> None:
    _write(tmp_path, "m", "models", MODELS)
    text = tables.fill("a\n<!-- benchmark:m begin -->\n<!-- benchmark:m end -->\nb\n", tmp_path)
    lines = text.splitlines()
    assert lines[0] == "a"
    assert lines[-1] == "b"
    assert "| resnet50 | 8 | fp16 | 1.000 | 3.000 (3.00) | 0.500 (0.50) |" in lines
    assert "| unet | 1 | fp16 | – | – | 2.000 |" in lines
    assert "PyTorch eager 3.00 over 1 cases; torch.compile 1.00 over 2 cases" in text
    assert "Commit " in text


def test_filling_twice_changes_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "m", "models", MODELS)
    once = tables.fill("<!-- benchmark:m begin -->old\n<!-- benchmark:m end -->", tmp_path)
    assert "old" not in once
    assert tables.fill(once, tmp_path) == once


def test_kernels_are_summed_up_by_group_and_batch(tmp_path: Path) -> None:
    common = {"group": "resnet50", "batch": 8, "unit": "TFLOP/s"}
    cases = [
        {**common, "ratio": 0.5, "rate": 300.0},
        {**common, "ratio": 2.0, "rate": 512.3},
        {**common, "status": "error", "message": "no"},
        {"group": "softmax", "batch": 0, "unit": "TB/s", "ratio": 1.5, "rate": 4.25},
        {**common, "ratio": 0.25, "rate": 99.0, "variants": "conv_mma"},
    ]
    _write(tmp_path, "k", "kernels", cases)
    text = tables.fill("<!-- benchmark:k begin --><!-- benchmark:k end -->", tmp_path)
    assert "| resnet50 | 8 | 2 of 3 | 1.00 | 0.50 – 2.00 | 512 TFLOP/s |" in text
    assert "| resnet50 (conv_mma only) | 8 | 1 of 1 | 0.25 | 0.25 – 0.25 | 99 TFLOP/s |" in text
    assert "| softmax | – | 1 of 1 | 1.50 | 1.50 – 1.50 | 4.25 TB/s |" in text


def test_comparisons_show_errors(tmp_path: Path) -> None:
    head = {"model": "unet", "batch": 1, "precision": "fp32"}
    good = {"status": "passed", "error": 2.34e-6, "tolerance": 1e-4, "launches": 19}
    cases = [
        {**head, **good, "build_seconds": 4.21},
        {**head, **good, "status": "failed", "error": None, "build_seconds": 1},
        {**head, "status": "error", "message": "BuildError: x"},
    ]
    _write(tmp_path, "c", "compare", cases)
    text = tables.fill("<!-- benchmark:c begin --><!-- benchmark:c end -->", tmp_path)
    assert "| unet | 1 | fp32 | 2.3e-06 | 0.0001 | passed | 19 | 4.2 s |" in text
    assert "| unet | 1 | fp32 | not finite | 0.0001 | failed | 19 | 1.0 s |" in text
    assert "| unet | 1 | fp32 | – | – | error | – | – |" in text


def test_unknown_kinds_and_open_sections_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table for results of kind 'x'; known: compare"):
        tables.markdown("x", [], [])
    with pytest.raises(InputError, match="section benchmark:m has a begin and no end marker"):
        tables.fill("<!-- benchmark:m begin -->", tmp_path)


def test_main_fills_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text("<!-- benchmark:m begin -->\n<!-- benchmark:m end -->\n", encoding="utf-8")
    args = [str(page), "--results", str(tmp_path)]
    assert tables.main(args) == 1
    assert "cannot be read as benchmark results" in capsys.readouterr().err
    _write(tmp_path, "m", "models", MODELS)
    assert tables.main([*args, "--check"]) == 1
    assert "differs from its results" in capsys.readouterr().out
    assert tables.main(args) == 0
    assert tables.main([*args, "--check"]) == 0
