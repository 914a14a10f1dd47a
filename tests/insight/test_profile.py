"""Profiles: times, rates, formats, pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from drawing.test_svg import EVIL, SVG
from runtime.plans import cuda_plan

import nrt
from nrt.errors import InputError
from nrt.insight.profile import LaunchTime, LayerTime, Profile, _launches, _layers, profile
from nrt.insight.roofline import Ceilings
from nrt.insight.units import microseconds, rate
from nrt.plan import LaunchStep, Plan, Target

from .small_network import image, network

CEILINGS = Ceilings("a device", 1e12, {"fp16": 100e12, "fp32": 10e12}, "by hand")


def layered(flops: int = 600, nbytes: int = 60, precision: str = "fp32") -> Plan:
    """A layer of two launches and one of a single launch, which does ``flops``."""
    plan = cuda_plan()
    first = plan.layers[0]
    second = replace(
        first, name="product", op="MatMul[max(x0, 0.0)]", flops=flops, nbytes=nbytes,
        precision=precision,
    )  # fmt: skip
    launch = next(s for s in plan.steps if isinstance(s, LaunchStep))
    return replace(plan, steps=(*plan.steps, replace(launch, layer=1)), layers=(first, second))


SAMPLES = [[0.0] * 3, [3e-6, 1e-6, 2e-6], [0.0] * 3, [4e-6, 4e-6, 7e-6], [9e-6, 6e-6, 6e-6]]


def made(plan: Plan, ceilings: Ceilings | None = CEILINGS) -> Profile:
    launches = _launches(plan, SAMPLES)
    layers = _layers(plan, launches, ceilings)
    return Profile(plan.name, plan.target, launches, layers, (8e-6, 1e-5, 1.2e-5), ceilings)


def test_launches_and_layers() -> None:
    found = made(layered())
    assert [(la.index, la.layer, la.name, la.kernel, la.stream) for la in found.launches] == [
        (0, 0, "add 1/2", "first", 1),
        (1, 0, "add 2/2", "second", 0),
        (2, 1, "product", "first", 1),
    ]
    assert [la.seconds for la in found.launches] == [2e-6, 4e-6, 6e-6]
    assert found.launches[2].mean == pytest.approx(7e-6)
    assert [(la.seconds, la.launches) for la in found.layers] == [
        (pytest.approx(6e-6), 2), (6e-6, 1),
    ]  # fmt: skip
    assert found.total == pytest.approx(12e-6)
    assert found.seconds == 1e-5


def test_rates_against_the_roof() -> None:
    low = made(layered(flops=300, nbytes=60)).layers[1]  # 5 operations a byte, the ridge is 10
    assert (low.intensity, low.bound, low.kind) == (5, "memory", "compute")
    assert low.flop_rate == pytest.approx(300 / 6e-6)
    assert low.fraction == pytest.approx(60 / 6e-6 / 1e12)
    high = made(layered(flops=6000, nbytes=60)).layers[1]
    assert (high.attainable, high.bound) == (10e12, "compute")
    assert high.fraction == pytest.approx(6000 / 6e-6 / 10e12)
    unknown = made(layered(precision="int8")).layers[1]
    assert (unknown.attainable, unknown.bound) == (None, "memory")
    assert unknown.fraction == pytest.approx(60 / 6e-6 / 1e12)
    bare = made(layered(), None).layers[1]
    assert (bare.fraction, bare.bound, bare.attainable) == (None, "", None)


def test_a_layer_that_took_no_time() -> None:
    layer = LayerTime(0, "a", "Relu", (), "fp32", "v", "", 0.0, 0, 5, 0)
    assert (layer.flop_rate, layer.byte_rate, layer.intensity) == (0, 0, 0)


def test_an_engine_is_measured() -> None:
    engine = nrt.compile(network(), target="cpu", opt_level=0)
    x = image()
    for inputs in ((), (x,), ({"image": x},)):
        found = engine.profile(*inputs, repeats=4)
        assert [la.name for la in found.layers] == [la.name for la in engine.plan.layers]
        assert all(len(la.samples) == 4 and min(la.samples) > 0 for la in found.launches)
        assert len(found.whole) == 4
        assert found.ceilings is not None
        # Both are host times of the same calls; views and copies of the whole are little more.
        assert 0.2 < found.total / found.seconds < 5
    by_hand = profile(engine, x, repeats=1, ceilings=CEILINGS)
    assert by_hand.ceilings is CEILINGS


def test_bad_requests() -> None:
    engine = nrt.compile(network(), target="cpu", opt_level=0)
    with pytest.raises(InputError, match="repeats=0: expected at least 1"):
        engine.profile(repeats=0)
    with pytest.raises(InputError, match=r"got 2 input\(s\), expected 1"):
        engine.profile(image(), image())
    with pytest.raises(InputError, match="picture"):
        engine.profile({"picture": image()})


def test_text() -> None:
    lines = str(made(layered())).splitlines()
    assert lines[0] == (
        "tiny-cuda on NVIDIA H200 (cuda): 3 launches, 12.0 µs one by one, 10.0 µs together"
    )
    assert lines[1] == "ceilings: fp32 10 TFLOP/s, 1 TB/s (by hand)"
    assert lines[2].split()[:3] == ["#", "layer", "op"]
    cells = lines[4].split("  ")
    assert [c.strip() for c in cells if c.strip()] == [
        "1", "product", "MatMul", "fp32", "cpu_add", "6.0 µs", "50.0%", "100 MFLOP/s", "10 MB/s",
        "compute", "0%",
    ]  # fmt: skip
    assert "cpu_add (2 launches)" in lines[3]
    assert "the ceilings of this device are unknown" in str(made(layered(), None))


def test_data() -> None:
    found = made(layered())
    data = json.loads(found.to_json())
    assert (data["seconds"], data["sum_seconds"]) == (1e-5, pytest.approx(1.2e-5))
    assert data["layers"][1]["flop_rate"] == pytest.approx(1e8)
    assert data["layers"][1]["fraction"] == found.layers[1].fraction
    assert data["launches"][0]["samples"] == [3e-6, 1e-6, 2e-6]
    assert data["ceilings"]["bandwidth"] == 1e12
    assert json.loads(made(layered(), None).to_json())["ceilings"] is None


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    found = made(layered())
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["name"]) == ["add", "product"]
    assert frame["seconds"].sum() == pytest.approx(found.total)
    launches = found.to_pandas("launches")
    assert list(launches["kernel"]) == ["first", "second", "first"]


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'nrt\[notebook\]'"):
        made(layered()).to_pandas()


def test_chrome_trace() -> None:
    trace = json.loads(made(layered()).to_chrome_trace())
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["tid"], e["cat"]) for e in events] == [
        ("add 1/2", 1, "Pointwise"), ("add 2/2", 0, "Pointwise"), ("product", 1, "MatMul"),
    ]  # fmt: skip
    assert [e["ts"] for e in events] == pytest.approx([0, 2, 6])
    assert [e["dur"] for e in events] == pytest.approx([2, 4, 6])
    assert events[2]["args"]["FLOP/s of the layer"] == pytest.approx(1e8)
    names = {e["name"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names == {"process_name": "tiny-cuda", "thread_name": "stream 1"}


def test_the_schema_of_trtexec() -> None:
    first, *rows = json.loads(made(layered()).to_trtexec())
    assert first == {"count": 3}
    assert [list(row) for row in rows] == [
        ["name", "timeMs", "averageMs", "medianMs", "percentage"]
    ] * 3
    assert [row["name"] for row in rows] == ["add 1/2", "add 2/2", "product"]
    assert rows[2]["timeMs"] == pytest.approx(21e-3)
    assert rows[2]["averageMs"] == pytest.approx(7e-3)
    assert rows[2]["medianMs"] == pytest.approx(6e-3)
    assert sum(row["percentage"] for row in rows) == pytest.approx(100)
    assert rows[2]["percentage"] == pytest.approx(100 * 21 / 42)
    empty = Profile("none", Target("cpu", "x"), (), (), (1.0,))
    assert json.loads(empty.to_trtexec()) == [{"count": 0}]


def bars(root: ElementTree.Element) -> list[float]:
    """Widths of the bars, without the ground and the legend."""
    return [float(r.attrib["width"]) for r in list(root.iter(f"{SVG}rect"))[4:]]


def test_the_picture() -> None:
    found = made(layered(flops=300, nbytes=60))
    root = ElementTree.fromstring(found.to_svg())
    widths = bars(root)
    assert len(widths) == 2
    assert widths[0] == pytest.approx(widths[1], abs=0.2)
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert "6.0 µs 50.0%" in texts
    assert "fp32 10 TFLOP/s" in texts
    assert "memory 1 TB/s" in texts
    titles = [t.text or "" for t in root.iter(f"{SVG}title")]
    assert "the roofline allows 0.0 µs" in titles
    assert any("5 operations per byte" in t for t in titles)


def test_dots_lie_under_the_roof_where_the_layers_do() -> None:
    found = made(layered(flops=300, nbytes=60))
    root = ElementTree.fromstring(found.to_svg())
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    by_time = sorted(found.layers, key=lambda la: -la.seconds)
    order = sorted(range(2), key=lambda i: by_time[i].intensity)
    assert dots[order[0]][0] < dots[order[1]][0]
    high = max(range(2), key=lambda i: by_time[i].flop_rate)
    assert dots[high][1] < dots[1 - high][1]  # y grows downwards


def test_pictures_without_ceilings_without_work_and_without_layers() -> None:
    bare = ElementTree.fromstring(made(layered(), None).to_svg())
    assert len(list(bare.iter(f"{SVG}circle"))) == 2
    moves = made(layered(flops=0))
    texts = [t.text or "" for t in ElementTree.fromstring(moves.to_svg()).iter(f"{SVG}text")]
    assert any("(1 of 2 layers only move data)" in t for t in texts)
    empty = Profile("none", Target("cpu", "x"), (), (), (1.0,))
    assert bars(ElementTree.fromstring(empty.to_svg())) == []


def test_names_are_escaped() -> None:
    found = made(layered())
    odd = tuple(replace(la, name=EVIL, op=EVIL, variant=EVIL, config=EVIL) for la in found.layers)
    html = replace(found, layers=odd, name=EVIL)._repr_html_()
    ElementTree.fromstring(f"<r>{html}</r>")
    assert "<script" not in html


def test_six_hundred_layers() -> None:
    found = made(layered())
    layers = tuple(replace(found.layers[1], index=i, name=f"n{i}") for i in range(600))
    launches = tuple(LaunchTime(i, i, f"n{i}", "k", 0, (6e-6,)) for i in range(600))
    many = replace(found, layers=layers, launches=launches)
    root = ElementTree.fromstring(many.to_svg())
    widths = bars(root)
    assert len(widths) == 600
    assert set(np.round(widths, 1)) == {widths[0]}
    assert len(list(root.iter(f"{SVG}circle"))) == 600


def test_units() -> None:
    assert [microseconds(s) for s in (1.23e-6, 0.0012, 0.0123)] == [
        "1.2 µs", "1,200.0 µs", "12.30 ms",
    ]  # fmt: skip
    assert [rate(v, "B/s") for v in (4.32e12, 999e9, 5e6, 1500, 3)] == [
        "4.32 TB/s", "999 GB/s", "5 MB/s", "1.5 kB/s", "3 B/s",
    ]  # fmt: skip
