"""The assignment of least cost: a minimum cut, exact for two precisions.

For precisions a and b every layer is a node of a flow network; those on the source's side of the
cut get a, the others b. What a conversion costs depends on whether *any* reader wants a type; a
node of its own stands for that, which infinite arcs pull to the side of its readers. With this,
every cost of `nrt.precision.costs` is an arc: the cut's capacity is the network's time, and the
minimum cut its minimum (V. Kolmogorov and R. Zabih, "What energy functions can be minimized via
graph cuts?", PAMI 2004).

With more than two, pairs are cut in turn while all other layers keep theirs, until no cut lowers
the cost: the swaps of Y. Boykov, O. Veksler and R. Zabih, "Fast approximate energy minimization via
graph cuts", PAMI 2001. Each is exact, so the result is a minimum among all exchanges of two types.

Where two assignments cost the same, the one with fewer layers of the first, narrower, type wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

import networkx as nx

from nrt.precision.costs import INT8, Cast, CostModel, Labels, Rounding, floats_of

__all__ = ["cheapest"]

_ROUNDS = 32
"""Rounds over all pairs after which what is found must do; three types need two or three."""


def cheapest(model: CostModel, starts: Iterable[Labels] = ()) -> dict[str, str]:
    """The precisions of least cost.

    Args:
        model: every layer has one precision or more.
        starts: assignments to begin from, with more than two precisions; besides these, the one
            where every layer has what is fastest for itself.
    """
    pairs = [
        pair
        for pair in combinations(model.precisions, 2)
        if any(set(pair) <= set(own) for own in model.times.values())
    ]
    alone = {layer: min(own, key=lambda p: (own[p], p)) for layer, own in model.times.items()}
    if len(pairs) == 1 and len(model.precisions) == 2:
        return _swap(model, alone, *pairs[0])
    found = [_descend(model, start, pairs) for start in (alone, *_valid(model, starts))]
    return min(found, key=model.cost)


def _valid(model: CostModel, starts: Iterable[Labels]) -> Iterable[Labels]:
    for start in starts:
        if all(start.get(layer) in own for layer, own in model.times.items()):
            yield start


def _descend(model: CostModel, start: Labels, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    labels = dict(start)
    cost = model.cost(labels)
    for _ in range(_ROUNDS):
        before = cost
        for a, b in pairs:
            swapped = _swap(model, labels, a, b)
            if model.cost(swapped) < cost:
                labels, cost = swapped, model.cost(swapped)
        if cost == before:
            break
    return labels


def _swap(model: CostModel, labels: Labels, a: str, b: str) -> dict[str, str]:
    """The best exchange of ``a`` and ``b`` among the layers that have one of them and may both."""
    free = [n for n, own in model.times.items() if labels[n] in (a, b) and a in own and b in own]
    if not free:
        return dict(labels)
    flow = _Flow(free)
    # Larger than the sum of all preferences, so that they decide nothing but ties.
    unit = len(free) + 1
    for layer in free:
        first, second = model.times[layer][a], model.times[layer][b]
        least = min(first, second)  # a share of what others save may be more than its own time
        flow.costs(layer, (first - least) * unit + 1, (second - least) * unit)
    fixed = {n: p for n, p in labels.items() if n not in flow.nodes}
    for rounding in model.roundings:
        _add_rounding(flow, rounding, fixed, (a, b), model.home, unit)
    for cast in model.casts:
        _add_cast(flow, cast, fixed, (a, b), model.home, unit)
    narrow = flow.source_side()
    return {**labels, **{n: a if n in narrow else b for n in free}}


class _Flow:
    """The network: layers, helpers, and both terminals."""

    SOURCE, SINK = 0, 1

    def __init__(self, layers: Iterable[str]) -> None:
        # Numbers, whose hashes are the same in every process: ties are broken alike.
        self.nodes = {layer: index for index, layer in enumerate(layers, 2)}
        self._graph = nx.DiGraph()
        self._graph.add_nodes_from((self.SOURCE, self.SINK))
        self._next = 2 + len(self.nodes)

    def helper(self) -> int:
        """A further node."""
        self._next += 1
        return self._next - 1

    def arc(self, tail: int, head: int, cost: int) -> None:
        """What it costs that ``tail`` is on the source's side and ``head`` on the sink's."""
        if cost and tail != head:
            known = self._graph.get_edge_data(tail, head, {"capacity": 0})
            if "capacity" in known:
                self._graph.add_edge(tail, head, capacity=known["capacity"] + cost)

    def never(self, tail: int, head: int) -> None:
        """As `arc`, of infinite cost."""
        self._graph.add_edge(tail, head)
        self._graph[tail][head].pop("capacity", None)

    def costs(self, layer: str, source: int, sink: int) -> None:
        """What it costs that ``layer`` is on either side."""
        self.arc(self.nodes[layer], self.SINK, source)
        self.arc(self.SOURCE, self.nodes[layer], sink)

    def any_at_source(self, layers: Iterable[str]) -> int:
        """A node that is on the source's side if one of ``layers`` is."""
        node = self.helper()
        for layer in layers:
            self.never(self.nodes[layer], node)
        return node

    def any_at_sink(self, layers: Iterable[str]) -> int:
        """A node that is on the sink's side if one of ``layers`` is."""
        node = self.helper()
        for layer in layers:
            self.never(node, self.nodes[layer])
        return node

    def source_side(self) -> set[str]:
        """The layers on the source's side of a minimum cut."""
        _, (first, _) = nx.minimum_cut(self._graph, self.SOURCE, self.SINK)
        return {layer for layer, node in self.nodes.items() if node in first}


def _add_rounding(
    flow: _Flow,
    net: Rounding,
    fixed: Labels,
    pair: tuple[str, str],
    home: str,
    unit: int,
) -> None:
    free = [r for r in net.readers if r in flow.nodes]
    others = [fixed[r] for r in net.readers if r in fixed]
    if not free and not (net.source in flow.nodes and INT8 in others):
        return
    price = {t: cost * unit for t, cost in net.dequantize.items()}
    source = flow.nodes.get(net.source or "")
    stored = [net.stored[p] * unit if source is not None else 0 for p in pair]
    if INT8 in others:
        for reader in free:
            at = [0 if p == INT8 else price[floats_of(p, home)] for p in pair]
            flow.costs(reader, *at)
        if source is not None and net.source is not None:
            least = min(stored)
            flow.costs(net.source, *(cost - least for cost in stored))
        return
    if pair[0] != INT8:
        return
    integers = flow.any_at_source(free)
    rest = sum(price[floats_of(p, home)] for p in others)
    rest += net.quantize * unit + stored[0]
    if net.source is not None and net.source in fixed:
        rest += net.stored[fixed[net.source]] * unit
    # What is saved where one reads int8 is lost where none does.
    flow.arc(integers, flow.SINK, max(rest, 0))
    flow.arc(flow.SOURCE, integers, max(-rest, 0))
    if source is not None:
        flow.arc(integers, source, stored[1] - stored[0])
    for reader in free:
        flow.arc(integers, flow.nodes[reader], price[floats_of(pair[1], home)])


def _add_cast(
    flow: _Flow, net: Cast, fixed: Labels, pair: tuple[str, str], home: str, unit: int
) -> None:
    free = [r for r in net.readers if r in flow.nodes]
    if not free and net.source not in flow.nodes:
        return
    always = {floats_of(fixed[r], home) for r in net.readers if r in fixed and fixed[r] != INT8}
    wants = [None if p == INT8 else floats_of(p, home) for p in pair]
    if free and wants[0] == wants[1] and wants[0] is not None:
        always.add(wants[0])
    for kind in sorted(always):
        _pay(flow, net, kind, (flow.SOURCE, flow.SINK), fixed, pair, home, unit)
    for side, wanted in enumerate(wants):
        if free and wanted is not None and wanted not in always:
            any_of = flow.any_at_sink(free) if side else flow.any_at_source(free)
            _pay(flow, net, wanted, (any_of, any_of), fixed, pair, home, unit, only=side)


def _pay(
    flow: _Flow,
    net: Cast,
    kind: str,
    wanted: tuple[int, int],
    fixed: Labels,
    pair: tuple[str, str],
    home: str,
    unit: int,
    *,
    only: int | None = None,
) -> None:
    """Arcs for the cast of ``net`` to ``kind``.

    Args:
        wanted: nodes that are at the source, and at the sink, where the cast is wanted.
        only: the side of readers that want it; None: it is wanted in any case.
    """
    at_source, at_sink = wanted
    casts: Mapping[tuple[str, str], int] = net.casts

    def price(have: str) -> int:
        return 0 if have == kind else casts[have, kind] * unit

    if net.source in flow.nodes:
        stored = flow.nodes[net.source]
        have = [floats_of(p, home) for p in pair]
        # What is paid where both are on one side is 0: readers of that side want what it stores.
        if only != 0:
            flow.arc(stored, at_sink, price(have[0]))
        if only != 1:
            flow.arc(at_source, stored, price(have[1]))
    elif only is None:
        return  # the same for every cut
    elif only == 0:
        flow.arc(at_source, flow.SINK, price(floats_of(fixed[net.source], home)))
    else:
        flow.arc(flow.SOURCE, at_sink, price(floats_of(fixed[net.source], home)))
