"""Tables of what users registered."""

from __future__ import annotations

import pytest

import nrt
from nrt.errors import ExtensionError, GraphError
from nrt.extensions.registry import Definition, Table, registry


def test_a_table_keeps_order_and_replaces_in_place() -> None:
    table: Table[int] = Table("thing")
    one, two = Definition("m.one", "a.py:1"), Definition("m.two", "a.py:2")
    table.add("x", 1, one)
    table.add("y", 2, two)
    table.add("x", 3, one)
    assert (table.names, table.values, table.get("x"), table.get("z")) == (
        ("x", "y"), (3, 2), 3, None,
    )  # fmt: skip
    with pytest.raises(
        ExtensionError, match=r"thing 'x' is registered already, by a.py:1, and now again by a.py:2"
    ):
        table.add("x", 4, two)
    assert table.get("x") == 3


def test_scopes_restore_what_was_there() -> None:
    assert nrt.registry is registry
    nrt.pointwise("One", lambda x: x + 1)
    with registry.scope():
        nrt.pointwise("Two", lambda x: x + 2)
        registry.pointwise.clear()
        nrt.pointwise("Three", lambda x: x + 3)
        assert registry.pointwise.names == ("Three",)
    assert registry.pointwise.names == ("One",)
    with pytest.raises(GraphError), registry.scope():
        nrt.pointwise("Two", lambda x: x + 2)(1.0, beta=3)
    assert registry.pointwise.names == ("One",)
    assert str(registry) == "pointwise functions: One"
    registry.clear()
    assert str(registry) == "nothing is registered"


def test_a_function_without_a_domain_is_found_in_all() -> None:
    nrt.pointwise("One", lambda x: x + 1)
    nrt.pointwise("One", lambda x: x + 2, domain="a.b")
    assert registry.pointwise.names == ("One", "a.b::One")
    own, general = registry.pointwise.values[::-1]
    assert registry.pointwise_function("a.b", "One") is own
    assert registry.pointwise_function("c", "One") is general
    assert (registry.knows("c", "One"), registry.knows("c", "Two")) == (True, False)
