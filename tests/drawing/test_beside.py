"""Two pictures side by side: pairs at one height, also where the pictures contradict."""

from __future__ import annotations

from xml.etree import ElementTree

from nrt.drawing import Arrow, Box, Picture
from nrt.drawing.beside import aligned_rows, side_by_side

SVG = "{http://www.w3.org/2000/svg}"


def chain(name: str, *keys: str) -> Picture:
    boxes = tuple(Box(key, key.upper()) for key in keys)
    return Picture(name, boxes, tuple(map(Arrow, keys, keys[1:])))


def same(*keys: str) -> dict[str, str]:
    return {key: key for key in keys}


def test_a_pair_shares_a_row() -> None:
    left, right = chain("l", *"abcde"), chain("r", *"ace")
    assert aligned_rows(left, right, same(*"ace")) == ([0, 1, 2, 3, 4], [0, 2, 4])
    assert aligned_rows(right, left, same(*"ace")) == ([0, 2, 4], [0, 1, 2, 3, 4])
    assert aligned_rows(left, right, {"c": "a"}) == ([0, 1, 2, 3, 4], [2, 3, 4])


def test_boxes_that_changed_places_keep_their_own_rows() -> None:
    left, right = chain("l", *"abcd"), chain("r", *"acbd")
    rows = aligned_rows(left, right, same(*"abcd"))
    for mine in rows:
        assert mine == sorted(set(mine))
    assert rows[0][0] == rows[1][0]
    assert rows[0][3] == rows[1][3]


def test_unknown_keys_pair_nothing() -> None:
    left, right = chain("l", *"ab"), chain("r", *"bc")
    assert aligned_rows(left, right, {"a": "z", "z": "c", "b": "b"}) == ([0, 1], [1, 2])


def test_an_empty_side() -> None:
    text = side_by_side(Picture("l", (), ()), chain("r", "a"), {}, ("nothing", "one"))
    assert len(list(ElementTree.fromstring(text).iter(f"{SVG}path"))) == 0


def test_the_document() -> None:
    left, right = chain("l", *"abc"), chain("r", *"ac")
    root = ElementTree.fromstring(side_by_side(left, right, same(*"ac"), ("<old>", "new")))
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert texts == ["<old>", "A", "B", "C", "new", "A", "C"]
    pictures = [g for g in root.iter(f"{SVG}g") if "transform" in g.attrib]
    moved = [
        tuple(map(float, g.attrib["transform"][10:-1].split())) for g in pictures
    ]  # translate(x y)
    assert moved[0][1] == moved[1][1]
    places = []
    for (x, _), picture in zip(moved, pictures, strict=True):
        rects = {}
        for group in picture.iter(f"{SVG}g"):
            if "data-box" in group.attrib:
                rect = group.find(f"{SVG}rect")
                assert rect is not None
                rects[group.attrib["data-box"]] = (
                    x + float(rect.attrib["x"]),
                    x + float(rect.attrib["x"]) + float(rect.attrib["width"]),
                    float(rect.attrib["y"]),
                )
        places.append(rects)
    assert all(places[0][key][2] == places[1][key][2] for key in "ac")
    assert max(p[1] for p in places[0].values()) < min(p[0] for p in places[1].values())
    assert max(p[1] for p in places[1].values()) < float(root.attrib["width"])
