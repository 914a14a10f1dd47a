"""Bar charts: bars and whiskers end where their values are, on axes of round numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nrt.drawing.bars import PLOT, Bar, Chart, charts_to_svg

SVG = "{http://www.w3.org/2000/svg}"


def chart(*bars: Bar) -> Chart:
    return Chart("title", "ms", bars, "note")


def drawn(*charts: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(charts_to_svg("name", charts))


def texts(root: ElementTree.Element) -> list[str]:
    return [t.text or "" for t in root.iter(f"{SVG}text")]


def ticks(root: ElementTree.Element) -> dict[float, float]:
    """Value -> horizontal place."""
    return {
        float(t.text or ""): float(t.get("x", ""))
        for t in root.iter(f"{SVG}text")
        if t.get("text-anchor") == "middle"
    }


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((3.4, 3.0, 3.9), [0, 1, 2, 3, 4]),
        ((-0.013, -0.02, 0.031), [-0.02, -0.01, 0, 0.01, 0.02, 0.03, 0.04]),
        ((113.0, 97.0, 145.0), [0, 50, 100, 150]),
        ((-7.0, -7.5, -6.0), [-8, -6, -4, -2, 0]),
        ((0.0, 0.0, 0.0), [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_hold_zero_and_every_end(
    values: tuple[float, float, float], wanted: list[float]
) -> None:
    places = ticks(drawn(chart(Bar("a", *values))))
    assert list(places) == pytest.approx(wanted)
    assert max(places.values()) - min(places.values()) == pytest.approx(PLOT, abs=0.2)


def test_a_bar_ends_at_its_value_and_its_whisker_at_the_interval() -> None:
    root = drawn(chart(Bar("up", 3.0, 2.0, 4.0), Bar("down", -1.5, -2.0, 0.5, kind="bad")))
    places = ticks(root)
    scale = (places[4] - places[0]) / 4
    bars = [r for r in root.iter(f"{SVG}rect") if r.get("class") is None]
    spans = [
        ((float(r.get("x", "")) - places[0]) / scale, float(r.get("width", "")) / scale)
        for r in bars
    ]
    assert spans[0] == pytest.approx((0, 3), abs=0.01)
    assert spans[1] == pytest.approx((-1.5, 1.5), abs=0.01)
    whiskers = [w for w in root.iter(f"{SVG}line") if w.get("class") == "nrt-whisker"]
    assert len(whiskers) == 6
    ends = [(float(w.get("x1", "")) - places[0]) / scale for w in whiskers]
    ends += [(float(w.get("x2", "")) - places[0]) / scale for w in whiskers]
    assert sorted({round(e, 1) for e in ends}) == [-2.0, 0.5, 2.0, 4.0]


def test_a_row_without_a_value_has_its_text_only() -> None:
    root = drawn(chart(Bar("none", None, text="same plan", tooltip="why")))
    assert [r.get("class") for r in root.iter(f"{SVG}rect")] == ["nrt-ground"]
    assert {"none", "same plan", "title", "note", "ms"} <= set(texts(root))
    assert [t.text for t in root.iter(f"{SVG}title")] == ["why"]


def test_text_is_escaped_and_inside() -> None:
    root = drawn(chart(Bar("<a&b>" * 30, 1.0, 1.0, 1.0, text='"x"')), chart(Bar("c", 1, 1, 1)))
    assert '"x"' in texts(root)
    assert any(t.startswith("<a&b>") for t in texts(root))
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "")) <= width
        assert 0 <= float(text.get("y", "")) <= height
    ys = [float(t.get("y", "")) for t in root.iter(f"{SVG}text") if t.text == "title"]
    assert ys[1] - ys[0] > 60
