"""The result: what it tells of a tensor, its file, its reports."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.dtypes import FP8E4M3
from nrt.errors import CalibrationError
from nrt.quantization import Calibration, Histogram, MethodRules, TensorRange, find_threshold

MODEL, DATA = "a" * 64, "b" * 64
MEANS = (0.1, -1 / 3, 5e-324)
LOWS = (float(np.float32(-0.1)), float(np.float32(-3.4028235e38)), float(np.float32(1e-45)))
HIGHS = (float(np.float32(1 / 3)), 0.0, 2.0**24 + 2)


@pytest.fixture
def found(rng: np.random.Generator) -> Calibration:
    rules = MethodRules("kl", (("out*", "minmax"), ("relu", "percentile")), 99.0)
    x = rng.standard_normal(20_000).astype(np.float32)
    x[0] = 40.0  # KL cuts that off, whatever the others are
    tensors = {"x": x, "relu": np.maximum(x, 0), "out=<b>": x[:7], "none": np.zeros(4)}
    channels = {"x": (MEANS, LOWS, HIGHS), "relu": (None, LOWS, HIGHS)}
    ranges = {
        n: TensorRange.of(n, Histogram.of(a), rules, *channels.get(n, ()))
        for n, a in tensors.items()
    }
    return Calibration(MODEL, DATA, rules, 12, ranges)


def test_ranges_follow_the_rules(found: Calibration) -> None:
    assert list(found) == ["x", "relu", "out=<b>", "none"]
    assert len(found) == 4
    assert [t.method for t in found.values()] == ["kl", "percentile", "minmax", "kl"]
    assert found["out=<b>"].threshold == found["out=<b>"].amax
    assert found["x"].signed
    assert not found["relu"].signed
    assert 0.4 < found["relu"].zero_share < 0.6
    # 1 % of what is not zero, within a bin.
    most = 0.01 * (1 - found["relu"].zero_share)
    assert 0.8 * most < found["relu"].clipped <= most
    assert "y" not in found
    assert found.get("y") is None


def test_scales_hold_the_threshold(found: Calibration, rng: np.random.Generator) -> None:
    for entry in found.values():
        assert entry.scale > 0
        assert np.float32(entry.scale) == entry.scale
        if entry.threshold:
            steps = 127 if entry.signed else 255
            assert entry.scale * steps == pytest.approx(entry.threshold, rel=1e-6)
    assert found["none"].threshold == 0
    assert found["none"].scale == 1
    assert found["none"].sqnr is None


def test_fp8_keeps_what_was_seen_unless_a_method_was_asked_for(found: Calibration) -> None:
    assert found["x"].threshold < found["x"].amax
    assert found.scale("x", FP8E4M3) == pytest.approx(found["x"].amax / 448, rel=1e-6)
    assert found.scale("relu", FP8E4M3) == pytest.approx(found["relu"].threshold / 448, rel=1e-6)
    assert found["relu"].threshold < found["relu"].amax
    assert found.scale("none", FP8E4M3) == 1
    assert [found.scale(name) for name in found] == [entry.scale for entry in found.values()]


def test_ranges_without_channels(found: Calibration) -> None:
    plain = found.without_channels()
    assert [(t.means, t.lows, t.highs) for t in plain.values()] == [(None,) * 3] * 4
    assert plain["x"] == replace(found["x"], means=None, lows=None, highs=None)
    assert (plain.model, plain.data, plain.samples) == (MODEL, DATA, 12)
    assert (found["x"].means, found["x"].lows, found["x"].highs) == (MEANS, LOWS, HIGHS)
    assert not any(name in repr(found["x"]) for name in ("means", "lows", "highs"))


def test_a_range_agrees_with_its_histogram(rng: np.random.Generator) -> None:
    x = rng.laplace(size=5000).astype(np.float32)
    entry = TensorRange.of("x", Histogram.of(x), MethodRules("mse"))
    assert entry.threshold == find_threshold(Histogram.of(x), "mse").value
    assert (entry.lowest, entry.highest) == (float(x.min()), float(x.max()))
    assert entry.amax == float(np.abs(x).max())
    assert entry.total == 5000
    assert entry.clipped == (np.abs(x) >= entry.threshold).mean()
    quantized = np.clip(np.rint(x / entry.scale), -127, 127) * entry.scale
    noise, signal = ((x - quantized) ** 2).sum(), (x.astype(float) ** 2).sum()
    assert entry.sqnr == pytest.approx(10 * np.log10(signal / noise), abs=0.3)


def test_patterns_that_match_nothing(found: Calibration) -> None:
    rules = MethodRules("kl", (("head*", "mse"),))
    with pytest.raises(
        CalibrationError,
        match=r"tensor pattern 'head\*' matches none of the 4 tensors; they are x, relu",
    ):
        rules.check_names(found)
    MethodRules("kl", (("rel?", "mse"),)).check_names(found)


def test_rules_that_are_wrong() -> None:
    with pytest.raises(CalibrationError, match="method: 'median' is unknown"):
        MethodRules("median")
    with pytest.raises(CalibrationError, match=r"tensor pattern 'a\*': 'x' is unknown; known: kl"):
        MethodRules("kl", (("a*", "x"),))
    with pytest.raises(CalibrationError, match="percentile=0: expected above 0 and up to 100"):
        MethodRules("percentile", (), 0)


def test_rules_as_text() -> None:
    assert str(MethodRules("mse")) == "mse"
    assert str(MethodRules("percentile", (("a*", "kl"),), 99.9)) == (
        "percentile, percentile 99.9; a*=kl"
    )


# -- the file --------------------------------------------------------------------------------------


def test_the_file_holds_everything(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    found.save(path)
    assert Calibration.load(path) == found
    assert [p.name for p in tmp_path.iterdir()] == ["cache.json"]
    content = json.loads(path.read_text())
    assert (content["version"], content["model"], content["samples"]) == (3, MODEL, 12)
    assert content["tensors"][0]["means"] == [0.1, -1 / 3, 5e-324]
    # The shortest decimals that give the fp32 numbers back.
    assert content["tensors"][0]["lows"] == [-0.1, -3.4028235e38, 1e-45]
    assert content["tensors"][0]["highs"] == [0.33333334, 0.0, 16777218.0]
    assert content["tensors"][1]["means"] is None
    assert content["tensors"][1]["highs"] == content["tensors"][0]["highs"]
    assert content["tensors"][2]["lows"] is content["tensors"][2]["highs"] is None
    text = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == text


@settings(max_examples=100, deadline=None)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_every_fp32_number_survives_the_file(numbers: list[float]) -> None:
    rules = MethodRules("minmax")
    entry = TensorRange.of("x", Histogram.of(np.ones(1)), rules, None, *[tuple(numbers)] * 2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "c.json"
        Calibration(MODEL, DATA, rules, 1, {"x": entry}).save(path)
        found = Calibration.load(path)["x"]
    assert found == entry
    assert list(map(str, found.lows or ())) == list(map(str, numbers)), "a zero lost its sign"


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    found: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "cache.json"
    found.save(path)
    before = path.read_bytes()
    broken = replace(found["x"], sqnr=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        replace(found, tensors={"x": broken}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cache.json"]


def _edited(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


EDITS: list[tuple[str, Any]] = [
    ("it lacks the mark", lambda c: c.pop("format")),
    ("'data'", lambda c: c.pop("data")),
    ("'median' is unknown", lambda c: c.update(method="median")),
    ("a tensor has the fields", lambda c: c["tensors"][0].pop("zeros")),
    ("a tensor has the fields", lambda c: c["tensors"][0].update(more=1)),
    ("tensor 'x': threshold is 'a'", lambda c: c["tensors"][0].update(threshold="a")),
    ("tensor 'x': total is 1.5", lambda c: c["tensors"][0].update(total=1.5)),
    ("tensor 'x': threshold -1", lambda c: c["tensors"][0].update(threshold=-1)),
    ("tensor 'x': threshold 1e[+]?30", lambda c: c["tensors"][0].update(threshold=1e30)),
    ("a tensor has the fields", lambda c: c["tensors"][0].pop("means")),
    ("tensor 'x': means are not finite", lambda c: c["tensors"][0].update(means=[1e400])),
    ("could not convert", lambda c: c["tensors"][0].update(means=["a"])),
    ("int too large", lambda c: c["tensors"][0].update(means=[10**400])),
    ("a tensor has the fields", lambda c: c["tensors"][0].pop("lows")),
    ("tensor 'x': lows are not finite", lambda c: c["tensors"][0].update(lows=[0, -1e400, 0])),
    ("tensor 'x': highs are not finite", lambda c: c["tensors"][0].update(highs=[1, 1e39, 1])),
    ("could not convert", lambda c: c["tensors"][0].update(highs=["a"])),
    ("not iterable", lambda c: c["tensors"][0].update(lows=1.5)),
    ("tensor 'x': lows or highs are given alone", lambda c: c["tensors"][0].update(lows=None)),
    ("tensor 'relu': lows or highs are", lambda c: c["tensors"][1].update(highs=None)),
    ("tensor 'x': means, lows and highs differ", lambda c: c["tensors"][0].update(lows=[0, 0])),
    ("tensor 'x': means, lows and highs differ", lambda c: c["tensors"][0].update(means=[0, 0])),
    ("tensor 'relu': means, lows and highs", lambda c: c["tensors"][1]["highs"].pop()),
    ("tensor 'x': a low is above its high", lambda c: c["tensors"][0].update(lows=[0.34, 0, 0])),
    ("of method 'best'", lambda c: c["tensors"][0].update(method="best")),
    ("tensors", lambda c: c.update(tensors=3)),
]


@pytest.mark.parametrize(("message", "edit"), EDITS, ids=range(len(EDITS)))
def test_files_that_were_edited(
    found: Calibration, tmp_path: Path, message: str, edit: Any
) -> None:
    path = tmp_path / "cache.json"
    found.save(path)
    _edited(path, edit)
    with pytest.raises(CalibrationError, match=message if message != "tensors" else "int"):
        Calibration.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"c\.json is no calibration cache: "):
        Calibration.load(tmp_path / "c.json")


def test_a_file_of_another_version(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    found.save(path)
    for version in (2, 99):
        _edited(path, lambda c, v=version: c.update(version=v))
        with pytest.raises(
            CalibrationError, match=rf"stale: version is {version}, now 3\. Calibrate again"
        ):
            Calibration.load(path)


def test_what_makes_a_cache_stale(found: Calibration) -> None:
    found.check_fresh("c.json", MODEL, DATA, found.rules)
    for model, data, rules, message in (
        ("c" * 64, DATA, found.rules, r"model is aaaaaaaaaaaa, now cccccccccccc\."),
        (MODEL, "d" * 64, found.rules, r"data is bbbbbbbbbbbb, now dddddddddddd\."),
        (MODEL, DATA, MethodRules("mse"), r"method is kl, percentile 99; .*, now mse\."),
    ):
        with pytest.raises(CalibrationError, match=rf"cache c\.json is stale: {message}"):
            found.check_fresh("c.json", model, data, rules)
    with pytest.raises(CalibrationError, match=r"model is .*; data is .*; method is .*overwrite"):
        found.check_fresh("c.json", "c", "d", MethodRules("mse"))


def test_the_model_it_belongs_to(found: Calibration) -> None:
    found.check_model(MODEL)
    with pytest.raises(
        CalibrationError, match="is of model aaaaaaaaaaaa, this model is cccccccccccc: its nodes"
    ):
        found.check_model("c" * 64)


# -- reports ---------------------------------------------------------------------------------------


def test_as_text(found: Calibration) -> None:
    title, head, *rows = str(found).splitlines()
    assert title.startswith("4 tensors, 12 samples, method kl, percentile 99; out*=minmax")
    assert head.split()[:4] == ["tensor", "method", "threshold", "amax"]
    assert [r.split()[0] for r in rows] == list(found)
    assert f"{found['x'].threshold:.5g}" in rows[0]
    assert rows[3].split()[2:] == ["0", "0", "uint8", "100.0%", "0", "-"]


def test_as_html(found: Calibration) -> None:
    text = found._repr_html_()
    assert text.count("<tr>") == 5
    assert "out=&lt;b&gt;" in text
    assert "<b>" not in text


class _Axes:
    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.update({name: (args, options)})


def test_plots(found: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of matplotlib, which the tests do not need."""
    axes = _Axes()
    module = ModuleType("matplotlib.figure")
    figure = SimpleNamespace(subplots=lambda: axes)
    module.Figure = lambda **options: figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    assert found.plot("x") is figure
    curve = found["x"].curve
    assert curve is not None
    assert axes.calls["plot"][0] == (curve.thresholds, curve.scores)
    assert axes.calls["axvline"][0] == (found["x"].threshold,)
    assert axes.calls["set"][1]["title"] == "x"


def test_plots_that_cannot_be(found: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="no tensor 'y'; it has x, relu, out=<b>, none"):
        found.plot("y")
    with pytest.raises(CalibrationError, match="tensor 'relu' has no curve: percentile searches"):
        found.plot("relu")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CalibrationError, match=r"plots need matplotlib.*calibration\['x'\]\.curve"):
        found.plot("x")
