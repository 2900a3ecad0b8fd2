"""Domains: parts of a ball on which some neurons are above or below given values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from verifiers.bound_propagation.native.places import split_points
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import shape_size


@dataclass(frozen=True)
class Splits:
    """The places where one ball can be split: inputs of nonlinear operators, each at a value inside its interval.

    A ReLU has one place, at 0; other neurons have several.

    Attributes:
        readers: the position of each nonlinear operator, and of the node that it reads.
        entries: for each of them, the entries of that node, once for every place.
        points: for each of them, the values.
    """

    readers: tuple[tuple[int, int], ...]
    entries: tuple[Int[Tensor, " _"], ...]
    points: tuple[Float[Tensor, " _"], ...]

    @classmethod
    def of(cls, graph: Graph, intervals: Sequence[Interval]) -> "Splits":
        """Find the places on one ball: where tighter ends of an input would tighten a relaxation."""
        readers, entries, points = [], [], []
        for position, node in enumerate(graph.nodes[1:], start=1):
            assert node.operator is not None
            if isinstance(node.operator, ReluDifference):
                continue  # it becomes linear with the ReLUs that it relates
            masks = node.operator.inputs_to_tighten([intervals[i] for i in node.inputs])
            for i, mask in zip(node.inputs, masks, strict=True):
                if mask is None:
                    continue
                chosen, values = split_points(node.operator, mask, intervals[i])
                readers.append((position, i))
                entries.append(chosen)
                points.append(values)
        return cls(tuple(readers), tuple(entries), tuple(points))

    @property
    def sizes(self) -> list[int]:
        """The number of places of each operator and input."""
        return [len(entries) for entries in self.entries]

    def __len__(self) -> int:
        return sum(self.sizes)

    def all_points(self, like: Tensor) -> Float[Tensor, " open"]:
        """Return the values of all places."""
        return torch.cat([like.new_zeros(0), *(each.to(like) for each in self.points)])

    def partners(self, graph: Graph) -> Int[Tensor, " open"]:
        """Return for each place the number of the same place of the other network of a coupled graph; -1 if none."""
        places: list[tuple[int, int, int]] = []
        for (_, node), entries in zip(self.readers, self.entries, strict=True):
            seen: dict[int, int] = {}
            for entry in entries.tolist():
                seen[entry] = seen.get(entry, -1) + 1
                places.append((node, entry, seen[entry]))
        number = {place: i for i, place in enumerate(places)}
        other = {node: triple.s if node == triple.t else triple.t for node, triple in graph.triples.items()}
        found = [number.get((other.get(node, -1), entry, which), -1) for node, entry, which in places]
        return torch.tensor(found, dtype=torch.long)

    def limits(
        self, signs: Int[Tensor, "domains open"], shapes: Mapping[int, tuple[int, ...]], like: Tensor
    ) -> dict[int, tuple[Float[Tensor, "domains ..."], Float[Tensor, "domains ..."]]]:
        """Return by node the largest value that its entries are above, and the least that they are below."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for (_, node), entries, points, part in self._parts(signs):
            points, index = points.to(like), entries.expand(len(part), -1)
            blank = like.new_full((len(part), shape_size(shapes[node])), float("inf"))
            low, high = found.get(node, (-blank, blank))
            low, high = low.flatten(1), high.flatten(1)
            low = low.scatter_reduce(1, index, torch.where(part > 0, points, -float("inf")), "amax")
            high = high.scatter_reduce(1, index, torch.where(part < 0, points, float("inf")), "amin")
            found[node] = low.reshape(len(part), *shapes[node]), high.reshape(len(part), *shapes[node])
        return found

    def added(
        self, values: Float[Tensor, "domains open"], shapes: Mapping[int, tuple[int, ...]]
    ) -> dict[int, Float[Tensor, "domains ..."]]:
        """Add up the values of all places of each entry, by node."""
        found: dict[int, Tensor] = {}
        for (_, node), entries, _, part in self._parts(values):
            flat = values.new_zeros((len(values), shape_size(shapes[node]))).index_add(1, entries, part)
            whole = flat.reshape(len(values), *shapes[node])
            found[node] = found[node] + whole if node in found else whole
        return found

    def moved(self, values: Float[Tensor, "domains open"]) -> dict[int, Float[Tensor, " domains"]]:
        """Add up values times the points of their places, by node."""
        found: dict[int, Tensor] = {}
        for (_, node), _, points, part in self._parts(values):
            total = part @ points.to(part)
            found[node] = found[node] + total if node in found else total
        return found

    def gather(
        self, maps: Mapping[tuple[int, int], Num[Tensor, "domains ..."]], like: Tensor
    ) -> Float[Tensor, "domains open"]:
        """Gather the values of maps, by operator and input, at all places."""
        pairs = zip(self.readers, self.entries, strict=True)
        found = (maps[reader].flatten(1)[:, entries] for reader, entries in pairs)
        return torch.cat([like[:, :0], *found], 1)

    def _parts(self, values: Tensor) -> "zip[tuple[tuple[int, int], Tensor, Tensor, Tensor]]":
        return zip(self.readers, self.entries, self.points, values.split(self.sizes, 1), strict=True)


@dataclass(frozen=True)
class Domains:
    """Domains of one ball, each with the row that it bounds.

    Attributes:
        row: the row's number in the specification.
        bound: its lower bound on the domain.
        signs: the side of each place: 1 for z >= point, -1 for z <= point, 0 if not split.
        alpha: the choice of each free line, from 0 to 1.
        beta: the multiplier of each split; 0 if not split.
        branch: the places to split next, most promising first; padded with -1.
    """

    row: Int[Tensor, " domains"]
    bound: Float[Tensor, " domains"]
    signs: Int[Tensor, "domains open"]
    alpha: Float[Tensor, "domains lines"]
    beta: Float[Tensor, "domains open"]
    branch: Int[Tensor, "domains candidates"]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: Tensor | slice) -> "Domains":
        """Select some of the domains, by mask, position or slice."""
        return Domains(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def to(self, dtype: torch.dtype) -> "Domains":
        """Convert the parameters."""
        return replace(self, alpha=self.alpha.to(dtype), beta=self.beta.to(dtype))

    def halves(self, place: Int[Tensor, " domains"]) -> "Domains":
        """Split each domain at one of its places; returns all halves above, then all below."""
        twice = Domains(*(torch.cat([getattr(self, f.name)] * 2) for f in fields(self)))
        sign = twice.signs.new_ones((len(twice), 1))
        sign[len(self) :] = -1
        return replace(twice, signs=twice.signs.scatter(1, place.repeat(2)[:, None], sign))


def joined(parts: list[Domains]) -> Domains:
    """Concatenate domains."""
    return Domains(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Domains)))
