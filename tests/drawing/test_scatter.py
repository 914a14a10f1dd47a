"""Points in a plane."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nrt.drawing.scatter import Dot, scatter_to_svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def drawn(dots: list[Dot]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter_to_svg("a <name>", dots, "x", "y"))


def test_places_follow_the_axes() -> None:
    svg = drawn([Dot(1, 10, "low"), Dot(3, 10, "right"), Dot(1, 30, "up", tooltip="far & up")])
    low, up, right = svg.findall(f"{NAMESPACE}circle")
    assert low.get("cx") == up.get("cx")
    assert float(right.get("cx", 0)) > float(low.get("cx", 0))
    assert low.get("cy") == right.get("cy")
    assert float(up.get("cy", 0)) < float(low.get("cy", 0))
    assert up[0].text == "far & up"
    texts = {t.text for t in svg.findall(f"{NAMESPACE}text")}
    assert {"a <name>", "x", "y", "low", "right", "up"} <= texts


def test_the_line_goes_from_left_to_right() -> None:
    dots = [Dot(3, 1, "c", joined=True), Dot(1, 2, "a", joined=True), Dot(2, 9, "b")]
    svg = drawn(dots)
    lines = [p for p in svg.findall(f"{NAMESPACE}path") if p.get("opacity") is None]
    (line,) = lines
    points = [tuple(map(float, p.split())) for p in line.get("d", "")[1:].split("L")]
    circles = {c.get("cx"): c for c in svg.findall(f"{NAMESPACE}circle")}
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert len(points) == 2
    assert {f"{x:g}" for x, _ in points} <= {f"{float(cx or 0):g}" for cx in circles}


@pytest.mark.parametrize("dots", [[], [Dot(0, 0, "zero")], [Dot(5, 1e-9, "a"), Dot(5, 2e-9, "b")]])
def test_few_points(dots: list[Dot]) -> None:
    assert len(drawn(dots).findall(f"{NAMESPACE}circle")) == len(dots)
