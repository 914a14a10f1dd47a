"""SVG: well-formed, escaped, readable in light and dark."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nrt.drawing import Arrow, Box, Drawable, Picture
from nrt.drawing.svg import MARKS, box_sizes, in_scroll_box, short, to_svg
from nrt.errors import GraphError

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert('1')</script>&\"]]>--\x00\x1b\ud800\n"
CLEAN = "<script>alert('1')</script>&\"]]>--\ufffd\ufffd\ufffd\n"


@pytest.fixture
def picture() -> Picture:
    boxes = (
        Box("a", "input", ("a", "fp32[3]"), "io"),
        Box("b", "Relu", ("b",), "pointwise", "Relu b\nfrom b"),
        Box("c", "Conv", (), "compute", mark="added"),
        Box("d", "Reshape", ("x" * 99,), "view", mark="removed"),
        Box("e", "Concat", (), "memory", mark="changed"),
    )
    arrows = tuple(Arrow(s, t, "v", f"{s}{t}") for s, t in ("ab", "bc", "ac", "cd", "be", "de"))
    return Picture("net", boxes, arrows)


def test_what_is_drawn(picture: Picture) -> None:
    root = ElementTree.fromstring(picture.to_svg())
    assert root.tag == f"{SVG}svg"
    assert root.attrib["aria-label"] == "net"
    groups = {g.attrib["data-box"]: g for g in root.iter(f"{SVG}g") if "data-box" in g.attrib}
    assert list(groups) == [*"abcde"]
    assert groups["b"].findtext(f"{SVG}title") == "Relu b\nfrom b"
    assert [t.text for t in groups["a"].iter(f"{SVG}text")] == ["input", "a", "fp32[3]"]
    assert groups["d"].findall(f"{SVG}text")[1].text == short("x" * 99)
    paths = list(root.iter(f"{SVG}path"))
    assert [(p.attrib["data-from"], p.attrib["data-to"]) for p in paths] == [
        tuple(ends) for ends in ("ab", "bc", "ac", "cd", "be", "de")
    ]
    assert [p.findtext(f"{SVG}title") for p in paths] == ["ab", "bc", "ac", "cd", "be", "de"]


def test_edges_end_at_their_boxes_as_drawn(picture: Picture) -> None:
    root = ElementTree.fromstring(picture.to_svg())
    rects = {
        g.attrib["data-box"]: [
            float(g.find(f"{SVG}rect").attrib[k])  # type: ignore[union-attr]
            for k in ("x", "y", "width", "height")
        ]
        for g in root.iter(f"{SVG}g")
        if "data-box" in g.attrib
    }
    for path in root.iter(f"{SVG}path"):
        start, *_ = path.attrib["d"].removeprefix("M").replace("V", "C").split("C")
        x, y = map(float, start.split())
        left, top, width, height = rects[path.attrib["data-from"]]
        assert left <= x <= left + width
        assert y == pytest.approx(top + height, abs=0.11)
        head = path.attrib["d"].split("L")[-1].split("l")[0]
        x, y = map(float, head.split())
        left, top, width, _ = rects[path.attrib["data-to"]]
        assert left <= x <= left + width
        assert y == pytest.approx(top, abs=0.11)


def test_text_fits_its_box(picture: Picture) -> None:
    for box, (width, height) in zip(picture.boxes, box_sizes(picture), strict=True):
        longest = max(len(short(text)) for text in (box.title, *box.lines))
        assert width > 6.7 * longest
        assert height > 15 * (1 + len(box.lines))


def test_marks_differ_in_sign_and_color(picture: Picture) -> None:
    text = picture.to_svg()
    for sign, light, dark in MARKS.values():
        assert f">{sign} " in text
        assert f'stroke="{light}"' in text
        assert f"stroke:{dark}" in text


def test_dark_is_a_style_on_top_of_light(picture: Picture) -> None:
    text = picture.to_svg()
    assert "@media (prefers-color-scheme:dark)" in text
    assert '<rect class="nrt-ground" width="100%" height="100%" fill="#ffffff"/>' in text
    for name in ("compute", "pointwise", "memory", "view", "io"):
        assert f".nrt-{name}{{fill:" in text


def test_names_are_escaped() -> None:
    picture = Picture(
        EVIL,
        (Box(EVIL, EVIL, (EVIL,), tooltip=EVIL), Box("b", "b")),
        (Arrow(EVIL, "b", EVIL, EVIL),),
    )
    text = to_svg(picture)
    assert "<script" not in text
    text.encode("utf-8")
    root = ElementTree.fromstring(text)
    assert [t.text for t in root.iter(f"{SVG}title")] == [CLEAN, CLEAN]
    assert next(t.text for t in root.iter(f"{SVG}text")) == CLEAN.strip()


def test_long_text_keeps_its_ends() -> None:
    assert short("abc") == "abc"
    assert short("a\n  b") == "a b"
    cut = short("/encoder/layer.10/attention/self/query/MatMul", 20)
    assert cut == "/encod…/query/MatMul"
    assert len(cut) == 20


def test_a_notebook_shows_it(picture: Picture) -> None:
    assert picture._repr_svg_() == picture.to_svg() == to_svg(picture)
    html = picture._repr_html_()
    assert html == in_scroll_box(picture.to_svg())
    assert html.startswith("<div ")
    assert "overflow: auto" in html
    ElementTree.fromstring(html)


def test_pictures_are_checked() -> None:
    with pytest.raises(GraphError, match="picture 'p': two boxes have the key 'a'"):
        Picture("p", (Box("a", ""), Box("a", "")), ())
    with pytest.raises(GraphError, match="picture 'p': arrow 'a' -> 'z': there is no box 'z'"):
        Picture("p", (Box("a", ""),), (Arrow("a", "z"),))
    with pytest.raises(NotImplementedError, match="Drawable"):
        Drawable().to_svg()
