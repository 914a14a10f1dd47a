"""Elements of charts: places, colors, escaped text."""

from __future__ import annotations

from xml.etree import ElementTree

from nrt.drawing.shapes import bar, dot, label, line, marker
from nrt.drawing.svg import KINDS, document

from .test_svg import CLEAN, EVIL, SVG


def parsed(*parts: str) -> ElementTree.Element:
    return ElementTree.fromstring(document("chart", "\n".join(parts), 90, 60))


def test_places_and_colors() -> None:
    root = parsed(
        bar("memory", 1, 2.25, 30, 4, "move"),
        dot("compute", 5, 6, 7.04),
        line(((1, 2), (3, 4.16), (5, 6)), faint=True),
        marker(9, 1, 3),
        label("x", 3, 4, anchor="end", bold=True, vertical=True),
    )
    rect = root.findall(f"{SVG}rect")[1]  # the first is the ground
    assert [rect.attrib[k] for k in ("x", "y", "width", "height")] == ["1", "2.2", "30", "4"]
    assert (rect.attrib["fill"], rect.attrib["stroke"]) == KINDS["memory"][0]
    assert rect.findtext(f"{SVG}title") == "move"
    circle = root.find(f"{SVG}circle")
    assert circle is not None
    assert [circle.attrib[k] for k in ("cx", "cy", "r")] == ["5", "6", "7"]
    assert circle.find(f"{SVG}title") is None
    paths = [p.attrib["d"] for p in root.iter(f"{SVG}path")]
    assert paths == ["M1 2L3 4.2L5 6", "M9 1L9 3"]
    text = root.find(f"{SVG}text")
    assert text is not None
    assert text.attrib["transform"] == "rotate(-90 3 4)"
    assert text.attrib["text-anchor"] == "end"


def test_text_stays_text() -> None:
    root = parsed(label(EVIL, 0, 0), bar("io", 0, 0, 1, 1, EVIL), line(((0, 0), (1, 1)), tip=EVIL))
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert [root.findtext(f"{SVG}text"), *titles] == [CLEAN] * 3
