"""What the commands show, with an engine made by hand: tables, JSON schemas, exit codes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nrt
from nrt.cli import compare, console, source
from nrt.cli.files import save_array, save_arrays
from nrt.insight.compare import TOLERANCES
from nrt.plan import Plan

from .support import Array, Cli, FakeEngine

Patch = pytest.MonkeyPatch
X = {"name": "x", "shape": [2, 8], "dtype": "fp32", "layout": "row-major"}


@pytest.fixture
def loaded(plan: Plan, monkeypatch: Patch) -> FakeEngine:
    """What `nrt.load` returns for any path, and `open_plan` too."""
    engine = FakeEngine(plan, lambda inputs: {"y": inputs["x"] * 2})
    monkeypatch.setattr(nrt, "load", lambda path: engine)
    monkeypatch.setattr("nrt.cli.run.require_plan", lambda path: None)
    monkeypatch.setattr("nrt.cli.bench.open_engine", lambda path, args: engine)
    monkeypatch.setattr("nrt.cli.inspect.open_plan", lambda path, args: plan)
    return engine


def test_run_with_random_inputs(cli: Cli, loaded: FakeEngine) -> None:
    first, again, other = cli("run", "p"), cli("run", "p"), cli("run", "p", "--seed", "5")
    assert first.code == 0
    assert first.err == "nrt: note: no --input given: the inputs are random (seed 0)\n"
    assert "2x8" in first.out
    assert first.out == again.out != other.out


def test_run_writes_outputs(cli: Cli, loaded: FakeEngine, tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    folder = tmp_path / "new" / "folder"
    result = cli("run", "p", "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", folder)
    assert (result.code, result.err) == (0, "")
    assert str(folder / "y.npy") in result.out
    assert [p.name for p in folder.iterdir()] == ["y.npy"]
    np.testing.assert_array_equal(np.load(folder / "y.npy"), x * 2)


def test_names_of_files(tmp_path: Path) -> None:
    arrays = {n: np.full(3, i) for i, n in enumerate(("a/b", "a:b", "../up", ".", "ok-1.x"))}
    paths = save_arrays(str(tmp_path), arrays)
    assert {p.parent for p in paths.values()} == {tmp_path}
    assert [p.name for p in paths.values()] == [
        "a_b.npy",
        "a_b.2.npy",
        "_up.npy",
        "output.npy",
        "ok-1.x.npy",
    ]
    for name, path in paths.items():
        np.testing.assert_array_equal(np.load(path), arrays[name])


def test_small_floats_are_widened(tmp_path: Path) -> None:
    import ml_dtypes

    x = np.linspace(-3, 3, 17).astype(ml_dtypes.bfloat16)
    save_array(tmp_path / "x.npy", x)
    stored = np.load(tmp_path / "x.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, x.astype(np.float32))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    save_array(path, np.arange(3))
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        # A dtype of kind b, i, u or f is written as it is; this one breaks while being written.
        save_array(path, _Broken())  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    np.testing.assert_array_equal(np.load(path), np.arange(3))


class _Broken:
    dtype = np.dtype(np.float32)

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return np.array([object()])


def test_bench_json(cli: Cli, loaded: FakeEngine, monkeypatch: Patch) -> None:
    host = [0.004, 0.001, 0.002, 0.003]
    calls = []

    def measure(engine: object, *, duration: float, warm_up: float) -> SimpleNamespace:
        calls.append((engine, duration, warm_up))
        return SimpleNamespace(host_seconds=host, device_seconds=None)

    monkeypatch.setattr("nrt.runtime.timing.measure", measure)
    result = cli("bench", "p", "--json", "--duration", "0.5", "--warm-up", "0")
    assert (result.code, result.err) == (0, "")
    assert calls == [(loaded, 0.5, 0.0)]
    data = json.loads(result.out)
    assert data["target"] == {"kind": "cpu", "arch": "x86_64", "device": ""}
    assert data["inputs"] == [X]
    assert data["device"] is None
    assert data["runs"] == 4
    assert data["throughput"] == pytest.approx(400)
    assert list(data["host"]) == ["count", "min", "mean", "median", "p90", "p95", "p99", "max"]
    assert data["host"]["median"] == pytest.approx(0.0025)
    assert data["host"]["p90"] == pytest.approx(0.0037)


def test_bench_table(cli: Cli, loaded: FakeEngine, monkeypatch: Patch) -> None:
    times = SimpleNamespace(host_seconds=[0.002, 0.002], device_seconds=np.array([5e-4, 5e-4]))
    monkeypatch.setattr("nrt.runtime.timing.measure", lambda *a, **k: times)
    result = cli("bench", "p")
    assert "tiny on x86_64 (cpu), 2 runs" in result.out
    assert "2.000 ms" in result.out
    assert "500.0 us" in result.out
    assert "throughput 500.0 runs/s" in result.out


def test_inspect_json(cli: Cli, loaded: FakeEngine) -> None:
    result = cli("inspect", "p", "--json")
    assert (result.code, result.err) == (0, "")
    data = json.loads(result.out)
    assert data["ops_before"] == {"Conv": 1, "Relu": 2}
    assert data["ops_after"] == {"Conv": 1, "Pointwise": 1}
    assert (data["arena_bytes"], data["weights_bytes"]) == (96, 256)
    assert (data["arena_lower_bound"], data["arena_ratio"], data["streams"]) == (80, 1.2, 1)
    assert (data["peak"]["layer"], data["peak"]["index"], data["peak"]["bytes"]) == ("conv", 0, 80)
    assert data["peak"]["alive"][1] == {"name": "v1", "bytes": 19}
    assert data["inputs"] == [X]
    assert data["target"]["kind"] == "cpu"
    assert [(e["name"], e["part"], e["parts"]) for e in data["layers"]] == [
        ("conv", 1, 2),
        ("conv", 2, 2),
        ("act", 1, 1),
    ]
    assert [e["seconds"] for e in data["layers"]] == [1.5e-3, None, None]
    first = data["layers"][0]
    assert first["origins"] == ["conv", "relu[0]"]
    assert (first["op"], first["variant"], first["precision"]) == ("Conv+relu", "cpu_conv", "fp32")
    assert (first["inputs"], first["outputs"]) == (["fp32[2,8]"], ["fp32[2,8]"])
    assert first["launch"] == {"kernel": "cpu_conv", "workspace_bytes": 32}


def test_inspect_table(cli: Cli, loaded: FakeEngine) -> None:
    text = cli("inspect", "p").out
    assert "tiny: built for cpu x86_64" in text
    assert "weights 256 B, arena 96 B, 3 launches\n" in text
    assert (
        "arena at its fullest: 80 B at conv (v0 20 B, v1 19 B, v2 18 B, v3 17 B); the arena is "
        "1.200 times that\n"
    ) in text
    assert "programmatic launch: on: 1.0000 ms, 1.1000 ms without" in text
    assert "conv, relu[0]" in text  # brackets are no markup
    assert "cpu_conv 1/2" in text
    assert "1.500 ms" in text
    assert "\x1b" not in text  # no colours on a pipe


Wrong = Callable[[Array], Array]


@pytest.fixture
def compared(plan: Plan, monkeypatch: Patch) -> Callable[[Wrong], None]:
    """Make `nrt compare` build an engine that returns ``wrong(reference)``."""

    def use(wrong: Wrong, reference: Wrong = np.exp) -> None:
        engine = FakeEngine(plan, lambda inputs: {"y": wrong(np.exp(inputs["x"]))})
        monkeypatch.setattr(compare, "build_engine", lambda model, args: engine)
        monkeypatch.setattr(
            compare,
            "run_reference",
            lambda model, inputs, names, registered: (
                "a reference",
                {"y": reference(inputs["x"])},
            ),
        )

    return use


@pytest.fixture
def any_file(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    path.write_bytes(b"model")
    return path


def _nan(y: Array) -> Array:
    y[1, 3] = math.nan
    return y


@pytest.mark.parametrize(
    ("arguments", "factor", "code"),
    [
        ((), 1 + 0.5e-4, 0),
        ((), 1 + 2e-4, 1),
        (("--precision", "fp16"), 1 + 0.5e-2, 0),
        (("--precision", "fp16"), 1 + 2e-2, 1),
        (("--layers", "head=fp16"), 1 + 0.5e-2, 0),
        (("--precision", "fp16,fp32"), 1 + 0.5e-2, 0),
        (("--tolerance", "0.5"), 1.4, 0),
        (("--tolerance", "0.3"), 1.4, 1),
        (("--tolerance", "0"), 1.0, 0),
    ],
)
def test_compare_tolerance(
    cli: Cli,
    compared: Callable[[Wrong], None],
    any_file: Path,
    *,
    arguments: tuple[str, ...],
    factor: float,
    code: int,
) -> None:
    compared(lambda y: y * np.float64(factor))
    result = cli("compare", any_file, "--json", *arguments)
    assert result.code == code
    data = json.loads(result.out)
    assert data["passed"] is (code == 0)
    assert data["reference"] == "a reference"
    (output,) = data["outputs"]
    assert output["name"] == "y"
    assert output["error"] == pytest.approx(factor - 1, rel=1e-3)
    assert output["passed"] is (code == 0)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (_nan, "the output holds 1 NaN or infinite value(s)"),
        (lambda y: y * np.inf, "the output holds 16 NaN or infinite value(s)"),
        (lambda y: y[:1], "shape (1, 8), the reference has (2, 8)"),
        (lambda y: y * 3, "error 2 is over the tolerance 0.0001"),
    ],
)
def test_compare_failures(
    cli: Cli, compared: Callable[[Wrong], None], any_file: Path, wrong: Wrong, reason: str
) -> None:
    compared(wrong)
    result = cli("compare", any_file, "--json")
    assert result.code == 1
    (output,) = json.loads(result.out)["outputs"]
    assert output["reason"] == reason
    result = cli("compare", any_file)
    assert result.code == 1
    assert f"FAILED: {reason}" in result.out


def test_compare_with_a_plan(
    cli: Cli, compared: Callable[[Wrong], None], any_file: Path, plan: Plan, monkeypatch: Patch
) -> None:
    """The tolerance follows the plan's layers; the plan is not built again."""
    compared(lambda y: y)
    engine = FakeEngine(plan, lambda inputs: {"y": np.exp(inputs["x"]) * 1.005})
    monkeypatch.setattr(compare, "require_plan", lambda path: None)
    monkeypatch.setattr(compare, "open_engine", lambda path, args: engine)
    result = cli("compare", any_file, "--plan", "p", "--json")
    assert result.code == 0
    assert json.loads(result.out)["tolerance"] == TOLERANCES["fp16"]
    fp32 = tuple(replace(layer, precision="fp32") for layer in plan.layers)
    engine.plan = replace(plan, layers=fp32)
    assert cli("compare", any_file, "--plan", "p").code == 1


def test_progress_is_silent_on_a_pipe_and_a_bar_on_a_terminal(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bar() as progress:
        assert progress is None
    with console.working("thinking"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress_bar() as progress:
        assert progress is not None
        progress("tuning", 0, 3)
        progress("tuning", 2, 3)
        progress("packing", 0, 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tuning" in err


def test_options_reach_the_builder(
    cli: Cli, any_file: Path, plan: Plan, monkeypatch: Patch, tmp_path: Path
) -> None:
    seen = {}

    def fake_build(model: object, **options: object) -> FakeEngine:
        seen.update(options, model=model)
        return FakeEngine(plan, lambda inputs: inputs)

    monkeypatch.setattr("nrt.builder.build", fake_build)
    assert cli("inspect", any_file).code == 0
    assert seen == {"model": str(any_file), "progress": None}
    line = "--shapes x:2x8 --precision fp16 --target cpu --opt-level 1 --layers a=fp32"
    assert cli("inspect", any_file, *line.split(), "--timing-cache", tmp_path / "t").code == 0
    assert seen == {
        "model": str(any_file),
        "progress": None,
        "shapes": {"x": (2, 8)},
        "precision": "fp16",
        "target": "cpu",
        "opt_level": 1,
        "layers": {"a": "fp32"},
        "timing_cache": str(tmp_path / "t"),
    }
    for word, wanted in (("on", {"programmatic": True}), ("off", {"programmatic": False})):
        seen.clear()
        assert cli("inspect", any_file, "--programmatic-launch", word).code == 0
        assert seen == {"model": str(any_file), "progress": None, **wanted}
    for line, chosen in (
        ("--streams 3", {"streams": 3}),
        ("--streams auto", {}),
        ("--memory-limit 1.5MiB", {"memory_limit": 3 << 19}),
    ):
        seen.clear()
        assert cli("inspect", any_file, *line.split()).code == 0
        assert seen == {"model": str(any_file), "progress": None, **chosen}
    seen.clear()
    assert cli("inspect", any_file, "--programmatic-launch", "auto").code == 0
    assert seen == {"model": str(any_file), "progress": None}


def test_human_numbers() -> None:
    assert [console.human_bytes(n) for n in (0, 1023, 1536, 3 << 20, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]
    assert [console.human_time(t) for t in (None, 2e-6, 0.0123, 2.5)] == [
        "-",
        "2.0 us",
        "12.300 ms",
        "2.500 s",
    ]


def test_a_plan_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    from nrt.plan_file import MAGIC

    path = tmp_path / "model.onnx"
    for content, expected in ((MAGIC + b"rest", True), (MAGIC[:-1], False), (b"", False)):
        path.write_bytes(content)
        assert source.is_plan(str(path)) is expected


def test_a_narrow_terminal_cuts_names_and_keeps_numbers(
    plan: Plan, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nrt.cli.inspect import show_launches
    from nrt.insight.report import launch_entries

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    long = replace(plan.layers[0], origins=tuple(f"block{i}.conv" for i in range(9)))
    entries = launch_entries(replace(plan, layers=(long, plan.layers[1])))
    show_launches(entries)
    text = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" in text
    assert "1.500 ms" in text
    assert "fp32[2,8]" in text
    assert "tile=8" not in text
    assert max(map(len, text.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "300")
    show_launches(entries)
    text = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "block8.conv" in text
    assert "tile=8" in text
