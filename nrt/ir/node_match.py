"""Which nodes of two graphs of one model stand for each other."""

from __future__ import annotations

from dataclasses import dataclass

from nrt.ir.graph import Graph
from nrt.ir.value import Node

__all__ = ["Match", "match_nodes"]


@dataclass(frozen=True)
class Match:
    """Old nodes and the new ones in their place; one side may be empty.

    Attributes:
        before: of the old graph, in its order.
        after: of the new graph, in its order.
    """

    before: tuple[Node, ...]
    after: tuple[Node, ...]


def match_nodes(before: Graph, after: Graph) -> tuple[Match, ...]:
    """Match every node once: by name, by an output's name, by origin.

    Returns:
        Matches in the order of ``after``'s nodes, then the old nodes that nothing stands for.
    """
    rank = {node: i for i, node in enumerate((*before.nodes, *after.nodes))}
    old_of: dict[Node, list[Node]] = {node: [] for node in after.nodes}
    taken: set[Node] = set()

    def pair(old: Node, new: Node) -> None:
        old_of[new].append(old)
        taken.add(old)

    for new in after.nodes:
        if before.has_node(new.name):
            pair(before.node(new.name), new)
    for new in after.nodes:
        # Also where the names match already: what a fusion takes in leaves its output's name.
        for value in new.outputs:
            old = before.value(value.name).producer if before.has_value(value.name) else None
            if old is not None and old not in taken:
                pair(old, new)
    also = _split(before, after, old_of, taken)
    _absorb(before, after, old_of, taken)
    matches = [
        Match(
            tuple(sorted(old_of[new], key=rank.__getitem__)),
            tuple(sorted([new, *also.pop(new, [])], key=rank.__getitem__)),
        )
        for new in after.nodes
        if new in old_of
    ]
    matches += [Match((old,), ()) for old in before.nodes if old not in taken]
    return tuple(matches)


def _absorb(before: Graph, after: Graph, old_of: dict[Node, list[Node]], taken: set[Node]) -> None:
    """Old nodes whose origins are all among those of one new node went into it."""
    holders: dict[str, list[Node]] = {}
    for new in after.nodes:
        for origin in new.origin if new in old_of else ():
            holders.setdefault(origin, []).append(new)
    for old in before.nodes:
        if old in taken or not old.origin:
            continue
        wanted = set(old.origin)
        fitting = [
            new
            for new in holders.get(old.origin[0], [])
            # One that held these origins before has taken nothing in.
            if wanted <= set(new.origin) and not any(wanted <= set(n.origin) for n in old_of[new])
        ]
        if fitting:
            best = min(fitting, key=lambda n: len(n.origin))
            old_of[best].append(old)
            taken.add(old)


def _split(
    before: Graph, after: Graph, old_of: dict[Node, list[Node]], taken: set[Node]
) -> dict[Node, list[Node]]:
    """New nodes made from one old node that is gone: the last stands for all; it maps to them."""
    gone: dict[str, Node] = {o: n for n in before.nodes if n not in taken for o in n.origin}
    pieces: dict[Node, list[Node]] = {}
    for new in after.nodes:
        sources = {gone[o] for o in new.origin if o in gone}
        if not old_of[new] and len(sources) == 1:
            pieces.setdefault(sources.pop(), []).append(new)
    also = {}
    for old, news in pieces.items():
        *others, last = news
        old_of[last].append(old)
        taken.add(old)
        also[last] = others
        for other in others:
            del old_of[other]
    return also
