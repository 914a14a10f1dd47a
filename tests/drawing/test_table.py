"""HTML tables: what stands where, and that text stays text."""

from __future__ import annotations

from xml.etree import ElementTree

from nrt.drawing.table import html_list, html_table

from .test_svg import CLEAN, EVIL


def test_cells_and_sides() -> None:
    html = html_table(("name", "time"), [("a", 1.5), (None, "2")], right=("time",), caption="Two")
    root = ElementTree.fromstring(f"<r>{html}</r>")
    assert root.findtext("p") == "Two"
    assert [e.text for e in root.iter("th")] == ["name", "time"]
    cells = list(root.iter("td"))
    assert [e.text for e in cells] == ["a", "1.5", "None", "2"]
    assert ["right" in e.attrib["style"] for e in cells] == [False, True, False, True]


def test_text_stays_text() -> None:
    html = html_table((EVIL,), [(EVIL,)], caption=EVIL) + html_list([EVIL])
    root = ElementTree.fromstring(f"<r>{html}</r>")
    found = [root.findtext("p"), *(e.text for tag in ("th", "td", "li") for e in root.iter(tag))]
    assert found == [CLEAN] * 4


def test_an_empty_list_is_nothing() -> None:
    assert html_list([]) == ""
    assert html_list(["a", 2]) == "<ul><li>a</li><li>2</li></ul>"
