"""Domains: parts of a ball on which some ReLUs have a given sign."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from verifiers.graph.graph import Graph
from verifiers.graph.operators import Elementwise, Interval, Operator
from verifiers.graph.relaxations.piecewise import LeakyRelu, Relu
from verifiers.graph.rows import shape_size


def is_relu(operator: Operator | None) -> bool:
    """Return whether an operator is linear on either side of zero: ReLU or leaky ReLU."""
    return isinstance(operator, Elementwise) and isinstance(operator.activation, Relu | LeakyRelu)


@dataclass(frozen=True)
class UnstableReLUs:
    """The neurons of one ball that can be split: ReLUs whose sign the root's intervals leave open, in order.

    Attributes:
        readers: the position of each ReLU operator, and of the node that it reads.
        entries: for each operator, the open entries of that node.
    """

    readers: tuple[tuple[int, int], ...]
    entries: tuple[Int[Tensor, " _"], ...]

    @classmethod
    def of(cls, graph: Graph, intervals: Sequence[Interval]) -> "UnstableReLUs":
        """Find the ReLUs that the intervals of one ball leave open."""
        readers, entries = [], []
        for position, node in enumerate(graph.nodes):
            if is_relu(node.operator):
                low, high = intervals[node.inputs[0]]
                readers.append((position, node.inputs[0]))
                entries.append(((low < 0) & (high > 0)).flatten().nonzero().flatten())
        return cls(tuple(readers), tuple(entries))

    @property
    def sizes(self) -> list[int]:
        """The number of open entries of each ReLU operator."""
        return [len(entries) for entries in self.entries]

    def __len__(self) -> int:
        return sum(self.sizes)

    def partners(self, graph: Graph) -> Int[Tensor, " open"]:
        """Return for each neuron the number of the same neuron of the other network of a coupled graph; -1 if none."""
        neurons = [
            (node, entry)
            for (_, node), entries in zip(self.readers, self.entries, strict=True)
            for entry in entries.tolist()
        ]
        number = {neuron: place for place, neuron in enumerate(neurons)}
        other = {node: triple.s if node == triple.t else triple.t for node, triple in graph.triples.items()}
        return torch.tensor([number.get((other.get(node, -1), entry), -1) for node, entry in neurons], dtype=torch.long)

    def spread(
        self, values: Num[Tensor, "domains open"], shapes: Mapping[int, tuple[int, ...]], fill: float = 0.0
    ) -> dict[tuple[int, int], Num[Tensor, "domains ..."]]:
        """Spread one value per neuron over whole maps, by (operator, node); ``fill`` where nothing is open."""
        maps = {}
        for (reader, node), entries, part in zip(self.readers, self.entries, values.split(self.sizes, 1), strict=True):
            flat = values.new_full((len(values), shape_size(shapes[node])), fill)
            maps[reader, node] = flat.index_copy(1, entries, part).reshape(len(values), *shapes[node])
        return maps

    def gather(
        self, maps: Mapping[int, Num[Tensor, "domains ..."]], like: Tensor, *, by_reader: bool = False
    ) -> Float[Tensor, "domains open"]:
        """Gather the open entries of maps, given by node or by operator."""
        found = (
            maps[reader if by_reader else node].flatten(1)[:, entries]
            for (reader, node), entries in zip(self.readers, self.entries, strict=True)
        )
        return torch.cat([like[:, :0], *found], 1)


def by_node(maps: Mapping[tuple[int, int], Num[Tensor, "domains ..."]]) -> dict[int, Num[Tensor, "domains ..."]]:
    """Add up the maps of operators that read the same node; returns them by node."""
    found: dict[int, Tensor] = {}
    for (_, node), values in maps.items():
        found[node] = found[node] + values if node in found else values
    return found


@dataclass(frozen=True)
class Domains:
    """Domains of one ball, each with the row that it bounds.

    Attributes:
        row: the row's number in the specification.
        bound: its lower bound on the domain.
        signs: the sign of each unstable ReLU: 1 for z >= 0, -1 for z <= 0, 0 if not split.
        alpha: the choice of each lower line, from 0 to 1.
        beta: the multiplier of each split; 0 if not split.
        branch: the ReLUs to split next, most promising first; padded with -1.
    """

    row: Int[Tensor, " domains"]
    bound: Float[Tensor, " domains"]
    signs: Int[Tensor, "domains open"]
    alpha: Float[Tensor, "domains open"]
    beta: Float[Tensor, "domains open"]
    branch: Int[Tensor, "domains candidates"]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: Tensor | slice) -> "Domains":
        """Select some of the domains, by mask, position or slice."""
        return Domains(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def halves(self, relu: Int[Tensor, " domains"]) -> "Domains":
        """Split each domain at one of its ReLUs; returns all positive halves, then all negative ones."""
        twice = Domains(*(torch.cat([getattr(self, f.name)] * 2) for f in fields(self)))
        sign = twice.signs.new_ones((len(twice), 1))
        sign[len(self) :] = -1
        return replace(twice, signs=twice.signs.scatter(1, relu.repeat(2)[:, None], sign))


def joined(parts: list[Domains]) -> Domains:
    """Concatenate domains."""
    return Domains(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Domains)))
