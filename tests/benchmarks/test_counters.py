"""counters: ncu's report, its errors, and cases with a program in the place of ncu."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import counters
from benchmarks.counters import METRICS, CountersDeniedError, config_from_text, counted
from benchmarks.kernel_problems import conv_problems, product, resnext50
from benchmarks.ncu_report import parse
from benchmarks.protocol import RESULTS, ROOT, read_results
from benchmarks.tables import fill, markdown
from nrt.cuda_kernels.device import device_for_arch
from nrt.dtypes import FP16
from nrt.errors import DeviceError, InputError
from nrt.problem import Problem

_TIME, _CYCLES, _TENSOR = METRICS[:3]
_DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
_GMMA = "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio"
_WAIT = "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
_HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
_VALUES = (
    (_TIME, "ns", "13,568"),
    (_CYCLES, "cycle", "1,024,762"),
    (_TENSOR, "%", "40.62"),
    (_DRAM, "%", "0.05"),
    (_GMMA, "", "n/a"),
    (_WAIT, "inst", "1.56"),
    ("lts__t_sector_hit_rate.pct", "%", "nan"),
)


def _launch(number: int, name: str = "nrt_kernel(int, float)", **changed: str) -> list[str]:
    head = f'"{number}","7","python","host","{name}","1","14","(288, 1, 1)","(52, 2, 1)","0","9.0"'
    return [
        f'{head},"Command line profiler metrics","{m}","{unit}","{changed.get(m, value)}"'
        for m, unit, value in _VALUES
    ]


def _report(launches: int = 2, name: str = "nrt_kernel(int, float)") -> str:
    """As ncu prints it; the last launch takes 14,000 ns."""
    lines = ["==PROF== Connected to process 7 (python)", "a line of the program, 1,2,3"]
    lines += ["==PROF== Disconnected from process 7", _HEADER]
    for number in range(launches):
        times = {_TIME: "14,000"} if number == launches - 1 else {}
        # An ID of two digits stands behind the others all the same.
        lines += _launch(number + 9, name, **times)
    return "\n".join(lines) + "\n"


# -- the report ----------------------------------------------------------------------------------


def test_a_report_is_parsed_per_launch() -> None:
    first, second = parse(_report())
    assert (first["name"], first["grid"], first["block"]) == (
        "nrt_kernel(int, float)",
        [52, 2, 1],
        [288, 1, 1],
    )
    assert first["metrics"][_TIME] == {"value": 13568, "unit": "ns"}
    assert second["metrics"][_TIME] == {"value": 14000, "unit": "ns"}
    assert first["metrics"][_CYCLES]["value"] == 1024762
    assert first["metrics"][_TENSOR] == {"value": 40.62, "unit": "%"}
    assert first["metrics"][_GMMA] == {"value": None, "unit": ""}
    assert first["metrics"]["lts__t_sector_hit_rate.pct"]["value"] is None
    assert counted([first, second], 1) == [second]


def test_quoted_lines_of_the_program_do_not_count() -> None:
    text = f'"a word", said the program\n"and\n{_report()}"another"\n'
    assert parse(text) == parse(_report())


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(InputError, match=r"no column ID, Kernel Name.*found nothing"):
        parse("")
    with pytest.raises(InputError, match=r"found '==WARNING== No kernels were profiled\.'"):
        parse("==WARNING== No kernels were profiled.\n")
    with pytest.raises(InputError, match="no column Metric Unit: expected the CSV"):
        parse(_report().replace('"Metric Unit",', '"Unit",'))
    with pytest.raises(InputError, match=r"gpu__time_duration.sum is '13x568', expected a number"):
        parse(_report().replace("13,568", "13x568"))


def test_launches_must_be_those_of_the_case() -> None:
    launches = parse(_report(3, "k"))
    with pytest.raises(InputError, match=r"saw 3 launches \(k, k, k\), expected 2 times 1"):
        counted(launches, 1)
    with pytest.raises(InputError, match=r"saw 0 launches \(none\), expected 2 times 2"):
        counted([], 2)


def test_configurations_are_read_back() -> None:
    assert config_from_text("2,128, 7") == (2, 128, 7)
    assert config_from_text("1, rows, True, 0.5") == (1, "rows", True, 0.5)
    assert config_from_text("") == ()


# -- a program in the place of ncu ---------------------------------------------------------------


def _ncu(folder: Path, *, out: str = "", err: str = "", code: int = 0) -> Path:
    """A program that prints ``out`` and keeps its arguments and the case it was given."""
    path = folder / "ncu"
    path.write_text(
        f"""#!{sys.executable}
import pathlib, sys
if sys.argv[1:] == ["--version"]:
    print("NVIDIA (R) Nsight Compute\\nVersion 2025.3.1.0 (build 1)")
    raise SystemExit
here = pathlib.Path(__file__).parent
(here / "arguments").write_text("\\n".join(sys.argv[1:]))
(here / "case").write_text(pathlib.Path(sys.argv[-1]).read_text())
sys.stdout.write({out!r})
sys.stderr.write({err!r})
raise SystemExit({code})
""",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_gpu", lambda: device_for_arch("sm_90a"))


def _main(tmp_path: Path, *args: str) -> int:
    common = ["--ncu", str(tmp_path / "ncu"), "--results", str(tmp_path), "--name", "c"]
    return counters.main([*common, "--group", "gemm", "--match", "[1024,1024]", *args])


def _only_case(tmp_path: Path) -> dict[str, Any]:
    (case,) = read_results(tmp_path / "c.json")["cases"]
    return dict(case)


def test_a_case_is_profiled_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _ncu(tmp_path, out=_report())
    assert _main(tmp_path, "--variant", "gemm_wgmma", "--config", "2,128,5,1") == 0
    case = _only_case(tmp_path)
    problem = product(1024, 1024, 1024, FP16)
    assert (case["problem"], case["key"]) == (str(problem), problem.key[:16])
    assert (case["variant"], case["config"]) == ("gemm_wgmma", "2, 128, 5, 1")
    (kernel,) = case["kernels"]
    assert kernel["metrics"][_TIME]["value"] == 14000
    (run,) = read_results(tmp_path / "c.json")["runs"]
    assert run["versions"]["ncu"] == "2025.3.1.0"
    row = "gemm_wgmma (2, 128, 5, 1) | 14.0 | 40.6 | – | 0.1 | – | wait 1.56 |"
    assert row in capsys.readouterr().out
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    assert arguments[:3] == ["--clock-control", "none", "--csv"]
    assert arguments[arguments.index("--metrics") + 1] == ",".join(METRICS)
    assert arguments[-4:-1] == [
        sys.executable,
        str(ROOT / "benchmarks" / "counters.py"),
        "--child",
    ]
    given = json.loads((tmp_path / "case").read_text(encoding="utf-8"))
    assert Problem.from_data(given["problem"]) == problem
    assert given["config"] == [2, 128, 5, 1]


def test_the_best_estimate_is_the_default_and_configurations_stand_side_by_side(
    tmp_path: Path,
) -> None:
    from nrt.cuda_kernels.gemm_wgmma import VARIANTS

    _ncu(tmp_path, out=_report())
    assert _main(tmp_path, "--variant", "gemm_wgmma") == 0
    (variant,) = VARIANTS
    problem = product(1024, 1024, 1024, FP16)
    best = variant.configs(problem, device_for_arch("sm_90a"))[0]
    assert _only_case(tmp_path)["config"] == ", ".join(map(str, best))
    assert _main(tmp_path, "--variant", "gemm_wgmma", "--config", "1,64,6,2", "2,64,3,2") == 0
    cases = read_results(tmp_path / "c.json")["cases"]
    assert [c["config"] for c in cases[1:]] == ["1, 64, 6, 2", "2, 64, 3, 2"]
    assert [c["run"] for c in cases] == [0, 1, 1]


def test_a_variant_that_refuses_says_why(tmp_path: Path) -> None:
    _ncu(tmp_path, out=_report())
    assert _main(tmp_path, "--variant", "gemm_wgmma", "--precision", "fp32") == 1
    case = _only_case(tmp_path)
    assert case["status"] == "error"
    assert "gemm_wgmma refuses MatMul(" in case["message"]
    assert "permit tf32" in case["message"]
    assert not (tmp_path / "arguments").exists()
    assert "| gemm_wgmma () | – | – | – | – | – | error |" in markdown(
        "counters", read_results(tmp_path / "c.json")["runs"], [case]
    )


def test_a_variant_of_another_family_is_refused(tmp_path: Path) -> None:
    _ncu(tmp_path, out=_report())
    assert _main(tmp_path, "--variant", "conv_wgmma") == 1
    assert "conv_wgmma solves no MatMul: MatMul(" in _only_case(tmp_path)["message"]


def test_a_program_that_fails_is_recorded_with_its_words(tmp_path: Path) -> None:
    error = "==ERROR== The application returned an error code (1).\n"
    _ncu(tmp_path, out=error, err="error: no kernel\n", code=1)
    assert _main(tmp_path, "--variant", "gemm_wgmma") == 1
    message = _only_case(tmp_path)["message"]
    assert message.startswith("DeviceError: ncu failed with exit code 1: ==ERROR== The application")
    assert "error: no kernel" in message


def test_counters_that_are_denied_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _ncu(tmp_path, out="==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", code=1)
    assert _main(tmp_path, "--variant", "gemm_wgmma") == 1
    said = capsys.readouterr().err
    assert "no counters to this user (ERR_NVGPUCTRPERM): run as root" in said
    assert "NVreg_RestrictProfilingToAdminUsers=0" in said
    assert not (tmp_path / "c.json").exists()
    problem = product(40, 40, 40, FP16)
    with pytest.raises(CountersDeniedError):
        counters.profile(str(tmp_path / "ncu"), problem, "gemm_wgmma", (2, 128, 5, 1))


def test_a_program_that_hangs_or_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, problem = tmp_path / "ncu", product(40, 40, 40, FP16)
    path.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    with pytest.raises(DeviceError, match=r"ncu \(.*\) cannot be started"):
        counters.profile(str(path), problem, "gemm_wgmma", (2, 128, 5, 1))
    path.chmod(0o755)
    monkeypatch.setattr(counters, "_TIMEOUT", 0.2)
    with pytest.raises(DeviceError, match=r"ncu took over 0.2 s for gemm_wgmma on MatMul"):
        counters.profile(str(path), problem, "gemm_wgmma", (2, 128, 5, 1))


def test_what_is_asked_for_is_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, "--variant", "gemm_wgmma") == 1
    said = capsys.readouterr().err
    assert "was not found; it comes with the CUDA toolkit" in said
    assert "Nsight Compute: give its path" in said
    _ncu(tmp_path, out=_report())
    assert _main(tmp_path, "--variant", "gemm_wgma") == 1
    assert "gemm_wgma unknown; expected some of conv_wgmma" in capsys.readouterr().err
    assert _main(tmp_path, "--variant", "gemm_wgmma", "--match", "[3,3]") == 1
    assert (
        "--match: no problem of gemm at batch 32 holds '[3,3]'; expected" in capsys.readouterr().err
    )
    assert _main(tmp_path, "--variant", "gemm_wgmma", "--group", "resnet50") == 1
    assert "group resnet50 needs --models DIR" in capsys.readouterr().err
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n", encoding="utf-8")
    other.chmod(0o755)
    with pytest.raises(InputError, match="--version printed 'hello', expected Nsight Compute's"):
        counters.find_ncu(str(other))
    other.write_text("#!/no/such/shell\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"--ncu: .* cannot be started"):
        counters.find_ncu(str(other))


# -- the process under ncu -----------------------------------------------------------------------


class _Runner:
    """In the place of a GPU's: notes what is prepared and launched."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self, *, programmatic: bool) -> None:
        self.seen.append(("programmatic", programmatic))
        self.stream, self.cuda = "stream", self

    def prepare(self, variant: Any, problem: Problem, config: Any, inputs: Any) -> Any:
        shapes = [a.shape for a in inputs]
        self.seen.append((variant.name, problem, config, shapes))
        return self

    def enqueue(self, stream: str) -> None:
        self.seen.append(("enqueue", stream))

    def synchronize(self, stream: str) -> None:
        self.seen.append(("synchronize", stream))


def test_the_process_launches_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import nrt.cuda_runner

    monkeypatch.setattr(nrt.cuda_runner, "CudaRunner", _Runner)
    monkeypatch.setattr(_Runner, "seen", [])
    # A convolution with an epilogue: the hardest problem to hand over.
    problem = next(p for p in conv_problems(resnext50(1).graph, "fp16") if len(p.inputs) > 3)
    path = tmp_path / "case.json"
    data: dict[str, Any] = {"problem": problem.to_data(), "variant": "conv_wgmma"}
    data["config"] = [1, 64, 6, 2]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert counters.main(["--child", str(path)]) == 0
    assert _Runner.seen == [
        ("programmatic", False),
        ("conv_wgmma", problem, (1, 64, 6, 2), [spec.shape for spec in problem.inputs]),
        ("enqueue", "stream"),
        ("enqueue", "stream"),
        ("synchronize", "stream"),
    ]
    data["problem"][2] = []
    path.write_text(json.dumps(data), encoding="utf-8")
    assert counters.main(["--child", str(path)]) == 1
    assert "error: malformed problem" in capsys.readouterr().err


# -- tables --------------------------------------------------------------------------------------


def _case(*kernels: dict[str, Any]) -> dict[str, Any]:
    problem = "Conv(fp16[1,8,9,9]{nhwc}, fp16[16,8,3,3]) -> fp16[1,16,9,9]{nhwc} stride 1 pads 1"
    head = {"problem": problem, "variant": "v", "config": "3, 5", "status": "passed"}
    return {**head, "kernels": list(kernels)}


def test_a_table_has_a_line_per_kernel() -> None:
    run = {"host": {"processor": "p", "machine": "m"}, "versions": {}, "commit": "c"}
    (kernel,) = parse(_report(1))
    long = {**kernel, "name": "second", "metrics": {**kernel["metrics"]}}
    long["metrics"][_TIME] = {"value": 1.5, "unit": "msecond"}
    long["metrics"][_GMMA] = {"value": 2.0, "unit": "inst"}
    text = markdown("counters", [run], [_case(kernel, long)])
    head = "| Conv(fp16[1,8,9,9], fp16[16,8,3,3]) -> fp16[1,16,9,9] | v (3, 5)"
    assert f"{head} nrt_kernel(int, float) | 14.0 | 40.6 | – | 0.1 | – | wait 1.56 |" in text
    assert f"{head} second | 1500.0 | 40.6 | – | 0.1 | – | gmma 2.00 |" in text
    empty = {**kernel, "metrics": {}}
    assert f"{head} | – | – | – | – | – | – |" in markdown("counters", [run], [_case(empty)])
    bad = {**kernel, "metrics": {_TIME: {"value": 3, "unit": "fortnight"}}}
    with pytest.raises(InputError, match="has the unit 'fortnight', expected one of ns"):
        markdown("counters", [run], [_case(bad)])


def test_the_counters_of_the_repository_fill_a_page() -> None:
    text = fill(
        "<!-- benchmark:counters_h200 begin -->\n<!-- benchmark:counters_h200 end -->\n", RESULTS
    )
    cases = read_results(RESULTS / "counters_h200.json")["cases"]
    kernels = [kernel for case in cases for kernel in case["kernels"]]
    assert text.count("\n| Conv(") == len(kernels) > 0
    for kernel in kernels:
        values = {name: kernel["metrics"][name]["value"] for name in METRICS}
        assert None not in values.values()
        clock = values[_CYCLES] / values[_TIME]  # cycles in a nanosecond: the GPU's GHz
        assert 1.0 < clock < 2.1
