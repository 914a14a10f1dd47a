"""The intermediate representation: a graph of ops on values.

============= ============================================================================
graph         `Graph`: the only way to change a network
value         `Node`, `Value`: what it is made of
op            `Op`, `TensorType`: what an operation is
ops           the vocabulary, one class per operation
pointwise     `Program`, `Builder`: elementwise code, shared by ops, epilogues and kernels
layout        when two memory layouts are the same memory
verify        the rules that a graph keeps
evaluate      a whole graph by NumPy, the oracle of every pass and kernel
text          a graph as text
============= ============================================================================

Names are resolved on first use (PEP 562), since kernels need `nrt.ir.pointwise` without networkx.
`verify` and `evaluate` are functions of the modules with their names: import them from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.ir.graph import Graph
    from nrt.ir.op import Op, TensorType
    from nrt.ir.pointwise import Builder, Program
    from nrt.ir.text import to_text
    from nrt.ir.value import NHWC, Layout, Node, Value

__all__ = [
    "NHWC",
    "Builder",
    "Graph",
    "Layout",
    "Node",
    "Op",
    "Program",
    "TensorType",
    "Value",
    "to_text",
]

_HOMES = {
    "NHWC": "value",
    "Graph": "graph",
    "Layout": "value",
    "Node": "value",
    "Value": "value",
    "Op": "op",
    "TensorType": "op",
    "Builder": "pointwise",
    "Program": "pointwise",
    "to_text": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nrt.ir' has no attribute {name!r}")
    return getattr(import_module(f"nrt.ir.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
