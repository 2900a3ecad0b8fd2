"""What a split is worth: estimates of halves are below the halves' minima, and order the candidates well."""

import torch

from tests.verifiers.bound_propagation.native.test_ascent import over_of, random_domains
from verifiers.bound_propagation.native.ascent import ByValues
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains
from verifiers.bound_propagation.native.glances import SECOND, _by_halves, _by_planes, worth
from verifiers.core.quantities import Norm


def never(domains: int) -> bool:
    return False


def undecided(over: DomainBounds, domains: Domains) -> tuple[torch.Tensor, torch.Tensor]:
    """The owner and the place of every neuron whose sign is open on its domain."""
    low, high = over.ends(over.cut(domains)[0])
    owner, place = ((low < 0) & (high > 0) & (domains.signs == 0)).nonzero(as_tuple=True)
    return owner, place


def test_no_point_of_a_half_is_below_its_estimate() -> None:
    over = over_of()
    domains = random_domains(over, 6, splits=1)
    tried = owner, place = undecided(over, domains)
    with torch.no_grad():
        above, below = _by_planes(over, domains, tried)
        low, high = over.root.balls.box()
        share = torch.rand(20_000, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        share[:10_000] = share[:10_000].round()
        nodes = over.graph.values(low + share * (high - low))
        neurons = over.splits.gather({reader: nodes[reader[1]] for reader in over.splits.readers}, nodes[0].flatten(1))
        values = nodes[-1].flatten(1) @ over.specification[0].T
    seen = 0
    for i in range(len(owner)):
        signs = domains.signs[owner[i]].to(neurons)
        inside = (signs * neurons >= 0).all(1)
        for half, estimate in ((neurons[:, place[i]] >= 0, above[i]), (neurons[:, place[i]] <= 0, below[i])):
            points = values[inside & half, domains.row[owner[i]]]
            seen += len(points)
            if len(points):
                assert float(estimate) <= float(points.min()) + 1e-9, f"candidate {i}"
    assert len(owner) > 50 and seen > 100_000


def test_estimates_are_near_the_bounds_of_the_halves() -> None:
    """A half's own bound keeps no multiplier of its split, the estimate moves it: so it may be the better one."""
    over = over_of()
    domains = random_domains(over, 6, splits=1)
    tried = undecided(over, domains)
    with torch.no_grad():
        quick, exact = _by_planes(over, domains, tried), _by_halves(over, domains, tried, 64, never)
        whole = over.glance(domains)[tried[0]]
    gain, wanted = quick - whole, exact - whole
    assert float(gain.mean()) > 0.5 * float(wanted.mean()) > 0
    assert torch.corrcoef(torch.stack([gain.flatten(), wanted.flatten()]))[0, 1] > 0.5


def test_the_worth_of_candidates_is_ordered_and_padded() -> None:
    over = over_of()
    domains = random_domains(over, 4, splits=1)
    low, high = over.ends(over.cut(domains)[0])
    open_ = (low < 0) & (high > 0) & (domains.signs == 0)
    branch = domains.branch.masked_fill(~open_, -1)
    domains = Domains(*(getattr(domains, name) for name in ("row", "bound", "signs", "alpha", "beta")), branch)
    with torch.no_grad():
        found = worth(over, domains, 1e9, 64, never)
        bounds = _by_planes(over, domains, open_.nonzero(as_tuple=True))
        capped = worth(over, domains, float(bounds.amin()), 64, never)
    assert torch.equal(torch.isinf(found), ~open_) and (found[~open_] < 0).all()
    torch.testing.assert_close(found[open_], bounds.amin(0) + SECOND * bounds.amax(0))
    torch.testing.assert_close(capped[open_], (1 + SECOND) * bounds.amin().expand(int(open_.sum())))


def test_other_balls_are_bounded_half_by_half_while_there_is_time() -> None:
    over = over_of(Norm.L2)
    domains = random_domains(over, 3, splits=1)
    assert not ByValues.suits(over)
    low, high = over.ends(over.cut(domains)[0])
    place = ((low < 0) & (high > 0) & (domains.signs == 0)).int().argmax(1)
    domains = Domains(*(getattr(domains, n) for n in ("row", "bound", "signs", "alpha", "beta")), place[:, None])
    with torch.no_grad():
        halves = torch.stack(over.glance(domains.halves(place)).chunk(2))
        found = worth(over, domains, 1e9, 4, never)
        late = worth(over, domains, 1e9, 4, lambda domains: True)
    torch.testing.assert_close(found[:, 0], halves.amin(0) + SECOND * halves.amax(0))
    assert late.shape == (3, 1) and bool(torch.isinf(late).all())
