"""Statistics, run headers, and result files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.protocol import (
    Results,
    Sampler,
    default_name,
    describe_error,
    geomean,
    host_sampler,
    measure,
    measure_in_turns,
    read_results,
    run_header,
)
from nrt.errors import InputError

RELATIVE = 1e-12


def test_measure_gives_median_and_p90_of_what_follows_the_warm_up() -> None:
    rng = np.random.default_rng()
    values = rng.uniform(1e-6, 1e-3, 40).tolist()
    served: list[float] = []

    def sample(repeats: int) -> list[float]:
        batch = values[len(served) : len(served) + repeats]
        served.extend(batch)
        return batch

    stats = measure(sample, warm_up=0, duration=0, least=30, most=30)
    assert stats.samples == 30
    assert stats.median == pytest.approx(np.median(values[10:]), rel=RELATIVE)
    assert stats.p90 == pytest.approx(np.percentile(values[10:], 90), rel=RELATIVE)


@pytest.mark.parametrize("bad", [0.0, float("nan"), -1e-6])
def test_measure_refuses_times_that_cannot_be(bad: float) -> None:
    with pytest.raises(InputError, match="expected positive times"):
        measure(lambda n: [bad] * n, warm_up=0, duration=0)


def test_subjects_take_turns_and_each_keeps_its_own_times() -> None:
    order: list[str] = []

    def sampler(name: str, seconds: float) -> Sampler:
        def sample(repeats: int) -> list[float]:
            order.append(name)
            return [seconds] * repeats

        return sample

    samplers = {"a": sampler("a", 1e-3), "b": sampler("b", 3e-3)}
    stats = measure_in_turns(samplers, warm_up=0, duration=0, least=8, most=8, rounds=4)
    assert {name: (s.median, s.samples) for name, s in stats.items()} == {
        "a": (1e-3, 8),
        "b": (3e-3, 8),
    }
    # Per turn, one call warms up and one counts; every second round goes backward.
    assert order == list("aabbbbaa" * 2)


def test_host_sampler_runs_as_often_as_it_says() -> None:
    calls: list[int] = []
    times = host_sampler(lambda: calls.append(1))(7)
    assert len(calls) == len(times) == 7
    assert min(times) >= 0


def test_geomean() -> None:
    assert geomean([]) is None
    assert geomean([0.5, 8.0]) == pytest.approx(2.0, rel=RELATIVE)


def test_header_says_where_and_what() -> None:
    header = run_header("abc")
    assert (header["commit"], header["dirty"]) == ("abc", None)
    assert set(header) >= {"device", "host", "versions", "commit", "dirty", "command", "date"}
    assert header["versions"]["numpy"] == np.__version__
    json.dumps(header)


def test_files_are_named_after_the_device() -> None:
    device = {"name": "NVIDIA GeForce RTX 4090"}
    assert default_name("models", "cuda", {"device": device}) == "models_geforce-rtx-4090"
    assert default_name("models", "cuda", {"device": {"name": "NVIDIA H200"}}) == "models_h200"
    assert default_name("compare", "cpu", {"device": device}) == "compare_cpu"
    assert default_name("compare", "cuda", {"device": None}) == "compare_cuda"


def test_results_survive_a_reopening_and_unused_runs_go(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    for run in range(3):
        results = Results.open(path, "kernels", ("a", "b"), {"number": run})
        results.add({"a": 1, "b": 0, "value": run})
        if run == 1:
            results.add({"a": 2, "b": 0, "value": run})
    data = read_results(path)
    assert [c["value"] for c in data["cases"]] == [2, 1]
    assert [data["runs"][c["run"]]["number"] for c in data["cases"]] == [2, 1]
    assert len(data["runs"]) == 2


def test_results_refuse_what_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(InputError, match=r"r\.json cannot be read as benchmark results"):
        read_results(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(InputError, match="is no benchmark result: expected kind, runs and cases"):
        read_results(path)
    Results(path, "models", ("a",), {}, [{}], []).write()
    with pytest.raises(InputError, match="of kind 'models', expected 'kernels'"):
        Results.open(path, "kernels", ("a",), {})


def test_an_error_is_described_by_type_text_and_place() -> None:
    try:
        raise ValueError("the text")
    except ValueError as error:
        text = describe_error(error)
    assert text.startswith("ValueError: the text (test_protocol.py:")
