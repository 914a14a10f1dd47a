"""Which siblings may be one, in which order: so that nobody copies a piece of the result.

Pieces whose readers are kernels may stand anywhere. A piece that a Concat joins with others belongs
into the Concat's memory: the pieces that are its first inputs come last, those that are its last
inputs first, so that what both hold is the same memory (see `nrt.ir.pitch.join_of`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nrt.ir.graph import Graph
from nrt.ir.ops import Concat
from nrt.ir.pitch import home_concat, reads_pieces
from nrt.ir.value import Node, Value

__all__ = ["ALIGN", "Arrangement", "arrange"]

ALIGN = 16
"""Bytes: where pieces may start, the widest access of a kernel."""


@dataclass(frozen=True)
class Arrangement:
    """Siblings in the order of their channels.

    Attributes:
        nodes: those that become one; fewer than two where none do.
        refused: the others, each with the reason.
        where: what stands with them in memory, for a key.
    """

    nodes: tuple[Node, ...]
    refused: tuple[tuple[Node, str], ...]
    where: str


def arrange(graph: Graph, nodes: Sequence[Node], axis: int) -> Arrangement:
    """The most of ``nodes`` whose results, side by side along ``axis``, are read without a copy."""
    refused: list[tuple[Node, str]] = []
    free: list[Node] = []
    joined: dict[Node, list[Node]] = {}
    for node in nodes:
        home = _home(graph, node, axis)
        if isinstance(home, str):
            refused.append((node, home))
        elif home is None:
            free.append(node)
        else:
            joined.setdefault(home, []).append(node)
    best: tuple[list[Node], str] = (free, "alone")
    for home, members in joined.items():
        for found, where in _with_concat(graph, free, members, home, axis):
            if len(found) > len(best[0]):
                best = (found, where)
    chosen, where = best
    refused += [
        (n, "no memory holds its result beside the others': a Concat joins some of them elsewhere")
        for n in (*free, *(n for members in joined.values() for n in members))
        if n not in chosen
    ]
    return Arrangement(tuple(chosen), tuple(refused), where)


def _home(graph: Graph, node: Node, axis: int) -> Node | str | None:
    """The Concat that holds the result of ``node``; None if none reads it; or a reason against."""
    value = node.output
    if graph.is_output(value):
        return "its result is an output of the graph, which is no piece of another tensor"
    if not _is_whole(value, value.shape[axis], axis):
        return (
            f"{value.shape[axis]} channels of {value.dtype} are no multiple of {ALIGN} bytes, at "
            "which pieces start"
        )
    if not reads_pieces(graph, value, axis):
        return "a Reshape of its result would have to copy a piece of another tensor"
    readers = [n for n, _ in graph.consumers(value) if isinstance(n.op, Concat)]
    homes = dict.fromkeys(home_concat(graph, n)[0] for n in readers)
    if not homes:
        return None
    (home, *more) = homes
    assert isinstance(home.op, Concat)
    output = home.output
    if more or home.op.axis % len(output.shape) != axis or len(readers) > len(set(readers)):
        return "Concats want its result in several places, or along another dimension"
    if output.layout != value.layout or output.dtype != value.dtype:
        return "the Concat that reads its result has another layout or type"
    if len(set(home.inputs)) != len(home.inputs) or not _is_whole(output, output.shape[axis], axis):
        return "the Concat that reads its result copies what it joins"
    return home


def _is_whole(value: Value, size: int, axis: int) -> bool:
    """Whether ``size`` elements along ``axis`` are a multiple of the alignment."""
    order = value.layout or tuple(range(len(value.shape)))
    inner = math.prod(value.shape[d] for d in order[order.index(axis) + 1 :])
    return size * inner * value.dtype.itemsize % ALIGN == 0


def _with_concat(
    graph: Graph, free: list[Node], members: list[Node], home: Node, axis: int
) -> list[tuple[list[Node], str]]:
    """Orders that put members of a Concat in their place there, next to the ``free`` ones."""
    by_value = {n.output: n for n in members}
    runs: list[list[Node]] = [[]]
    for value in home.inputs:
        if value in by_value:
            runs[-1].append(by_value[value])
        elif runs[-1]:
            runs.append([])
    first = runs[0] if home.inputs[0] in by_value else []
    last = runs[-1] if home.inputs[-1] in by_value else []
    size = home.output.shape[axis]
    found = [(run, "inside a Concat") for run in runs if run]
    beside = sum(n.output.shape[axis] for n in free)
    # As in `nrt.ir.pitch.join_of`: not more idle memory than the Concat has elements.
    if free and beside <= size and reads_pieces(graph, home.output, axis):
        found += [
            (order, f"{beside} beside a Concat of {size}")
            for run, order in ((first, [*free, *first]), (last, [*last, *free]))
            if run
        ]
    return found
