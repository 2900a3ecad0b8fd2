"""Find the nodes of a graph that values depend on, through the bodies of branches too."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

#: AttributeProto.GRAPH and AttributeProto.GRAPHS
GRAPH, GRAPHS = 5, 10


def bodies(node: Any) -> list[Any]:
    """List the graphs inside a node: branches, or the body of a loop."""
    found = [attribute.g for attribute in node.attribute if attribute.type == GRAPH]
    return found + [body for attribute in node.attribute if attribute.type == GRAPHS for body in attribute.graphs]


def reads(node: Any) -> Iterator[str]:
    """Yield the names that a node reads, and those that its bodies do: of their own values, and of others."""
    stack = [node]
    while stack:
        one = stack.pop()
        yield from filter(None, one.input)
        for body in bodies(one):
            yield from (value.name for value in body.output)
            stack += body.node


def live(nodes: Sequence[Any], names: Iterable[str]) -> list[Any]:
    """Return the nodes that values depend on, in their order."""
    makers: dict[str, list[int]] = {}  # several of one name are refused later
    for place, node in enumerate(nodes):
        for name in filter(None, node.output):
            makers.setdefault(name, []).append(place)
    stack, wanted = [place for name in names for place in makers.get(name, ())], set[int]()
    while stack:
        place = stack.pop()
        if place not in wanted:
            wanted.add(place)
            stack += [maker for name in reads(nodes[place]) for maker in makers.get(name, ())]
    return [nodes[place] for place in sorted(wanted)]


def keep_live(graph: Any) -> None:
    """Keep only the nodes that the outputs of a graph depend on, in place; a graph without any is not changed."""
    wanted = live(graph.node, [output.name for output in graph.output])
    kept = [type(node).FromString(node.SerializeToString()) for node in wanted]
    damaged = any(not any(node.output) for node in graph.node)  # it is refused later
    if kept and not damaged:
        graph.ClearField("node")
        graph.node.extend(kept)
