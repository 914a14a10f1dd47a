"""Print the layers of a network; shared by the examples."""

from __future__ import annotations

import nrt

__all__ = ["show"]


def show(net: nrt.Network) -> None:
    """One line per layer: name, operation, output; then the number of weights."""
    graph = net.graph
    print(f"{graph.name}: {', '.join(map(repr, graph.inputs))}")
    wide = max(len(node.name) for node in graph.nodes)
    for node in graph.nodes:
        outputs = ", ".join(str(value.type) for value in node.outputs)
        print(f"  {node.name:<{wide}}  {node.op.name:<18}  {outputs}")
    count = sum(value.constant.size for value in graph.constants if value.constant is not None)
    print(f"{len(graph)} layers, {count / 1e6:.2f} million weights")
