"""Result files as Markdown tables, and README.md's tables from result files.

A page marks where a table goes, NAME being a file in ``benchmarks/results`` without its ``.json``::

    <!-- benchmark:NAME begin -->
    <!-- benchmark:NAME end -->

``python -m benchmarks.tables [PAGE ...]`` fills these sections (default: README.md,
docs/performance.md and docs/quantization.md); ``--check`` changes nothing and exits with 1 when a
table is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocol import RESULTS, ROOT, Case, geomean, read_results
from nrt.errors import InputError

__all__ = ["fill", "main", "markdown", "table"]

_BEGIN = re.compile(r"<!-- benchmark:([\w.-]+) begin -->")
_PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "quantization.md",
)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 1) -> str:
    """A Markdown table; columns from index ``right`` on are aligned to the right."""
    rule = ["---" if i < right else "---:" for i in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in lines
    )


def markdown(kind: str, runs: Sequence[Case], cases: Sequence[Case]) -> str:
    """The tables of ``cases`` with a line on where they come from.

    Raises:
        InputError: there is no table for ``kind``.
    """
    if kind not in _TABLES:
        raise InputError(f"no table for results of kind {kind!r}; known: {', '.join(_TABLES)}")
    used = sorted({case["run"] for case in cases if "run" in case}) or range(len(runs))[-1:]
    return f"{_TABLES[kind](cases)}\n\n{_source([runs[i] for i in used])}\n"


def fill(text: str, folder: Path) -> str:
    """``text`` with every marked section replaced by the table of its file in ``folder``.

    Raises:
        InputError: a file is missing, or a section has no end.
    """
    parts, at = [], 0
    for begin in _BEGIN.finditer(text):
        name = begin[1]
        end = text.find(f"<!-- benchmark:{name} end -->", begin.end())
        if end < 0:
            raise InputError(f"section benchmark:{name} has a begin and no end marker")
        data = read_results(folder / f"{name}.json")
        body = markdown(data["kind"], data["runs"], data["cases"])
        parts += [text[at : begin.end()], f"\n{body}"]
        at = end
    return "".join([*parts, text[at:]])


def _source(runs: Sequence[Case]) -> str:
    """Where the numbers come from, one sentence."""
    devices = _unique(
        f"{r['device']['name']} (driver {r['device']['driver']})"
        if r.get("device")
        else r["host"]["processor"] or r["host"]["machine"]
        for r in runs
    )
    versions = _unique(
        ", ".join(f"{k} {v}" for k, v in r["versions"].items() if k in _NAMED) for r in runs
    )
    commits = _unique(r["commit"] + (" with changes" if r.get("dirty") else "") for r in runs)
    return f"{'; '.join(devices)}. {'; '.join(versions)}. Commit {', '.join(commits)}."


_NAMED = ("torch", "onnxruntime", "onnxruntime-gpu", "numba-cuda", "numba")


def _unique(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))


# -- one table per kind --------------------------------------------------------------------------


def _compare(cases: Sequence[Case]) -> str:
    rows = []
    for case in cases:
        if case["status"] == "error":
            error = tolerance = launches = build = "–"
        else:
            error = "not finite" if case["error"] is None else f"{case['error']:.1e}"
            tolerance, launches = f"{case['tolerance']:g}", str(case["launches"])
            build = f"{case['build_seconds']:.1f} s"
        head = [case["model"], str(case["batch"]), case["precision"]]
        rows.append([*head, error, tolerance, case["status"], launches, build])
    columns = (
        "model",
        "batch",
        "precision",
        "relative error",
        "tolerance",
        "",
        "launches",
        "build",
    )
    return table(columns, rows)


_PEERS = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "max-autotune": "max-autotune",
    "onnxruntime": "ONNX Runtime",
}


def _models(cases: Sequence[Case]) -> str:
    """Milliseconds; the ratio is peer over nrt: above 1, nrt is faster."""
    peers = [p for p in _PEERS if any(p in c.get("times", {}) for c in cases)]
    rows = []
    for case in cases:
        times = case.get("times", {})
        row = [case["model"], str(case["batch"]), case["precision"], _ms(times, "nrt")]
        row += [_ms(times, p) + _ratio(times, p) for p in peers]
        rows.append(row)
    lines = table(
        ["model", "batch", "precision", "nrt ms", *(_PEERS[p] + " ms" for p in peers)], rows
    )
    notes = []
    for peer in peers:
        ratios = [r for c in cases if (r := ratio_of(c.get("times", {}), peer)) is not None]
        if ratios:
            notes.append(f"{_PEERS[peer]} {geomean(ratios):.2f} over {len(ratios)} cases")
    if notes:
        lines += (
            "\n\nIn brackets the peer's time over nrt's: above 1, nrt is faster. Geometric mean: "
            f"{'; '.join(notes)}."
        )
    return lines


def ratio_of(times: Mapping[str, Case], peer: str) -> float | None:
    """The peer's median over nrt's; None when one of the two has none."""
    ours, theirs = times.get("nrt", {}).get("median"), times.get(peer, {}).get("median")
    return theirs / ours if ours and theirs else None


def _ms(times: Mapping[str, Case], who: str) -> str:
    median = times.get(who, {}).get("median")
    return "–" if median is None else f"{median * 1e3:.3f}"


def _ratio(times: Mapping[str, Case], peer: str) -> str:
    ratio = ratio_of(times, peer)
    return "" if ratio is None else f" ({ratio:.2f})"


def _kernels(cases: Sequence[Case]) -> str:
    """One line per group, batch and choice of variants: the geometric mean over its problems."""
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        only = f" ({case['variants']} only)" if case.get("variants") else ""
        groups.setdefault((case["group"] + only, case["batch"]), []).append(case)
    rows = []
    for (group, batch), members in groups.items():
        good = [c for c in members if c.get("ratio")]
        ratios = [c["ratio"] for c in good]
        mean = geomean(ratios)
        best = max((c["rate"] for c in members if c.get("rate")), default=None)
        unit = members[0]["unit"]
        rows.append(
            [
                group,
                str(batch) if batch else "–",
                f"{len(good)} of {len(members)}",
                "–" if mean is None else f"{mean:.2f}",
                "–" if mean is None else f"{min(ratios):.2f} – {max(ratios):.2f}",
                "–" if best is None else f"{best:.3g} {unit}",
            ]
        )
    columns = ("group", "batch", "measured", "speed of the peer's", "range", "best rate")
    return table(columns, rows)


_PERCENT = {
    "tensor cores %": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "L2 %": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "DRAM %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
}
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def _counters(cases: Sequence[Case]) -> str:
    """One line per kernel of a case."""
    rows = []
    for case in cases:
        problem = re.sub(r"\{.*?\}", "", case["problem"].partition(" stride ")[0])
        label = f"{case['variant']} ({case['config']})"
        if not case["kernels"]:
            rows.append([problem, label, *["–"] * (len(_PERCENT) + 1), case["status"]])
        for kernel in case["kernels"]:
            values = {n: m["value"] for n, m in kernel["metrics"].items()}
            shares = [_decimal(values.get(metric), 1) for metric in _PERCENT.values()]
            name = f"{label} {kernel['name']}" if len(case["kernels"]) > 1 else label
            rows.append([problem, name, _duration(kernel["metrics"]), *shares, _stall(values)])
    lines = table(("problem", "kernel", "us", *_PERCENT, "largest stall"), rows, 2)
    return (
        f"{lines}\n\nCaches are flushed before each launch, so times are above those of a network. "
        "A stall is the number of warps that wait for it, on average at each issue."
    )


def _duration(metrics: Mapping[str, Case]) -> str:
    """Microseconds, whatever unit ncu chose."""
    time = metrics.get("gpu__time_duration.sum", {"value": None})
    if time["value"] is None:
        return "–"
    if time["unit"] not in _MICROSECONDS:
        raise InputError(
            f"gpu__time_duration.sum has the unit {time['unit']!r}, expected one of "
            f"{', '.join(_MICROSECONDS)}"
        )
    return _decimal(time["value"] * _MICROSECONDS[time["unit"]], 1)


def _stall(values: Mapping[str, float | None]) -> str:
    stalls = [(v, m[1]) for n, v in values.items() if v is not None and (m := _STALL.fullmatch(n))]
    return "{1} {0:.2f}".format(*max(stalls)) if stalls else "–"


def _decimal(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _accuracy(cases: Sequence[Case]) -> str:
    """Percent of the test images, and what the precision took off them."""
    rows, notes = [], {}
    for case in cases:
        head = [case["network"], case["precision"], case["calibration"] or "–"]
        if "top1" not in case:
            notes[case["precision"]] = f"{case['precision']}: {case['message']}"
            rows.append([*head, "–", "–", "–", case["status"]])
            continue
        layers = ", ".join(f"{n} {name}" for name, n in sorted(case["layers"].items()))
        changed = f"{case['changed']} of {case['images']}"
        rows.append([*head, f"{case['top1']:.2f}", _points(case["drop"]), changed, layers])
    columns = ("network", "precision", "calibration", "top-1 %", "drop", "changed", "layers")
    return "\n\n".join([table(columns, rows, 3), *notes.values()])


def _points(drop: float) -> str:
    """Points that are lost; a minus is a gain."""
    return f"{drop:.2f}" if abs(drop) >= 0.005 else "0"


def _precisions(cases: Sequence[Case]) -> str:
    """Times of the chosen network and of those of one precision, and what has more than int8."""
    rows = []
    for case in cases:
        head = [case["model"], str(case["batch"])]
        if "chosen" not in case:
            rows.append([*head, *["–"] * 6, case["status"]])
            continue
        point = case["chosen"]
        singles = {p["name"]: p for p in case["points"] if p["single"]}
        times = [_milliseconds(p) for p in (point, *map(singles.get, ("int8", "fp16")))]
        accuracies = [_decimal(p and p["accuracy"], 1) for p in (point, singles.get("int8"))]
        above = f"{len(case['above_int8'])} of {case['layers']}"
        rows.append([*head, *times, *accuracies, above, case["message"] or "all hold"])
    columns = (
        "model",
        "batch",
        "chosen ms",
        "int8",
        "fp16",
        "chosen dB",
        "int8",
        "above int8",
        "promises",
    )
    return table(columns, rows)


def _milliseconds(point: Case | None) -> str:
    seconds = point and point["seconds"]
    return _decimal(seconds and 1e3 * seconds, 3)


_TABLES: Mapping[str, Callable[[Sequence[Case]], str]] = {
    "compare": _compare,
    "models": _models,
    "kernels": _kernels,
    "counters": _counters,
    "accuracy": _accuracy,
    "precisions": _precisions,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the pages; 1 when a file is missing, or with ``--check`` when a page would change."""
    parser = argparse.ArgumentParser(description="fill the marked tables of Markdown pages")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="change nothing, report")
    args = parser.parse_args(argv)
    status = 0
    for page in args.pages or [p for p in _PAGES if p.exists()]:
        text = page.read_text(encoding="utf-8")
        try:
            filled = fill(text, args.results)
        except InputError as error:
            print(f"error: {page}: {error}", file=sys.stderr)
            status = 1
            continue
        if filled == text:
            continue
        if args.check:
            print(f"{page}: a table differs from its results; run python -m benchmarks.tables")
            status = 1
        else:
            page.write_text(filled, encoding="utf-8")
            print(f"{page}: filled")
    return status


if __name__ == "__main__":
    sys.exit(main())
