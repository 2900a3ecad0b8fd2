"""Attacks: projections against a second version, counterexamples that hold when run again, and the reading of eps."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import oracles
from tests.certifying import answers, prepared
from tests.marks import thin
from tests.zoo import BY_NAME, Kind, images, mlp
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.attack import Attack
from verifiers.geometry.attacks.search import Victims, in_turn
from verifiers.geometry.balls import Balls, keyed_start, norms, project, random_start, reachable, steepest
from verifiers.geometry.margins import margins
from verifiers.methods.pgd import Pgd

every_norm = pytest.mark.parametrize("norm", tuple(Norm), ids=str)
EPS = {Norm.LINF: "8/255", Norm.L2: "0.5", Norm.L1: "3"}


# Projections and directions


@every_norm
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-3, 3), min_size=1, max_size=8), eps=st.floats(1e-3, 5))
def test_projection_is_the_nearest_point_of_the_ball(norm: Norm, values: list[float], eps: float) -> None:
    delta = torch.tensor([values], dtype=torch.float64)
    found = project(delta, torch.tensor([eps], dtype=torch.float64), norm)[0].numpy()
    expected = oracles.project_by_search(np.array(values), eps, norm.value)
    np.testing.assert_allclose(found, expected, atol=1e-7, err_msg=f"{norm} projection of {values} to {eps}")


@every_norm
def test_projection_takes_each_sample_to_its_own_ball(norm: Norm) -> None:
    delta = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = torch.tensor([0.01, 0.3, 1.0, 5.0, 1e3], dtype=torch.float64)
    found = project(delta, eps, norm)
    assert bool((norms(found, norm) <= eps * (1 + 1e-12)).all()), "a projection outside its ball"
    for i in range(5):
        alone = project(delta[i : i + 1], eps[i : i + 1], norm)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=0, msg=f"sample {i} depends on its batch")
    assert torch.equal(found[4], delta[4]), "a point inside is moved"
    torch.testing.assert_close(
        project(found, eps, norm), found, rtol=0, atol=1e-12, msg="not a projection: it moves twice"
    )


@every_norm
def test_steepest_has_unit_length_and_raises_the_objective(norm: Norm) -> None:
    gradient = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    direction = steepest(gradient, norm)
    torch.testing.assert_close(norms(direction, norm), torch.ones(4), msg=f"{norm}: lengths are not 1")
    assert bool(((direction * gradient).sum(1) > 0).all()), f"{norm}: the direction does not go up"


@every_norm
def test_random_starts_lie_in_their_balls(norm: Norm) -> None:
    x, eps = images((3, 4), 6), torch.linspace(0.01, 2, 6)
    delta = random_start(x, eps, norm, torch.Generator().manual_seed(0))
    assert bool((norms(delta, norm) <= eps * (1 + 1e-5)).all()), "a start outside its ball"
    again = random_start(x, eps, norm, torch.Generator().manual_seed(0))
    other = random_start(x, eps, norm, torch.Generator().manual_seed(1))
    assert torch.equal(delta, again) and not torch.equal(delta, other), "starts do not follow their generator"


@every_norm
@pytest.mark.parametrize("eps", [1 / 255, 0.03, 0.5, 1e-9])
def test_reachable_points_stay_in_the_ball_when_rounded(norm: Norm, eps: float) -> None:
    x = images((3, 8, 8), 16)
    reach = reachable(eps, norm, x)
    assert 0 < reach < eps, f"reach {reach} of {eps}"
    if eps < 1e-6:
        return  # nothing but x itself has float32 pixels this near
    delta = random_start(x.double(), torch.full((16,), reach).double(), norm, torch.Generator().manual_seed(0))
    delta = project(delta.sign() * 1e3, torch.full((16,), reach).double(), norm)
    length = norms((x.double() + delta).float().double() - x.double(), norm)
    assert bool((length <= eps).all()), f"rounding to float32 leaves the ball by {float(length.max()) - eps:.3g}"


@every_norm
def test_ascent_stays_in_ball_and_box_and_goes_up(norm: Norm) -> None:
    kind = BY_NAME["cnn"]
    network, x = kind.network(), kind.images(4)
    x[0, 0, 0], x[1, 0, 0] = 0.0, 1.0
    eps = torch.tensor([0.05, 0.2, 0.5, 1.0])
    found = ascend(lambda z: -network(z)[:, 0], Balls(x, eps, norm), steps=12)
    assert not found.requires_grad and bool(((found >= 0) & (found <= 1)).all()), "outside the image box"
    assert bool((norms(found.double() - x.double(), norm) <= eps + 1e-5).all()), "outside the ball"
    with torch.no_grad():
        assert bool((network(found)[:, 0] < network(x)[:, 0]).all()), "the objective did not rise"


# Counterexamples


def attack(
    network: nn.Module, x: Tensor, norm: Norm, eps: str | float, indices: Tensor | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    certifier = prepared(Pgd(steps=15, restarts=4), network, x, eps=eps, norm=norm, seed=seed)
    return answers(certifier, network, x, indices=indices)


@pytest.mark.parametrize(
    ("name", "norm", "share"), thin(itertools.product(("mlp", "cnn", "tanh", "residual"), Norm, (1.0, 0.25)), every=5)
)
def test_a_stored_counterexample_holds_when_it_is_run_again(name: str, norm: Norm, share: float) -> None:
    kind = BY_NAME[name]
    network, x = kind.network(), kind.images(12)
    x[0], x[1] = x[0].round(), x[1].clamp(0.5, 1)
    with torch.no_grad():
        predicted = network(x).argmax(1)
    eps = Epsilon.parse(float(Epsilon.parse(EPS[norm]).value) * share * 4)
    rows = attack(network, x, norm, eps)
    found = rows["status"] == Status.FALSIFIED
    assert share < 1 or found.any(), "no counterexample was found, so none is tested"
    image = torch.from_numpy(rows["counterexample"])
    assert image.dtype == torch.float32, "not the pixels that the network saw"
    distance = norms(image.double() - x.double(), norm).numpy()
    assert (distance[found] <= eps.value).all(), f"outside the ball by {(distance[found] - eps.value).max():.3g}"
    np.testing.assert_allclose(rows["distance"][found], distance[found], rtol=1e-12, err_msg="distance is wrong")
    assert bool(((image[found] >= 0) & (image[found] <= 1)).all()), "pixels outside [0, 1]"
    for i in np.flatnonzero(found):
        with torch.no_grad():
            again = int(network(image[i : i + 1]).argmax())
        assert again != int(predicted[i]), f"sample {i} keeps its class when run again"
    assert (rows["margin"][found] < 0).all(), "a counterexample with a margin that is not negative"
    missed = ~found
    assert np.isnan(rows["distance"][missed]).all() and np.isnan(rows["counterexample"][missed]).all(), "rows not found"
    assert (rows["margin"][missed] >= 0).all() and (rows["radius"] == 0).all(), "an attack certifies nothing"
    assert (rows["status"][missed] == Status.NOT_CERTIFIED).all(), "a row without a counterexample has another status"


@pytest.mark.parametrize("eps", ["1/255", "2/255"])
def test_large_images_are_not_attacked_from_outside_the_ball(eps: str) -> None:
    kind = Kind("", lambda: mlp((784, 10)), (1, 28, 28))
    network, x = kind.network(), 0.5 + 0.5 * kind.images(16)
    for norm in Norm:
        scale = {Norm.LINF: 1, Norm.L2: 28, Norm.L1: 784}[norm]
        limit = Epsilon.parse(Epsilon.parse(eps).value * scale)
        attack = Attack(limit.value, norm, seed=0, steps=Pgd().steps, restarts=Pgd().restarts)
        with torch.no_grad():
            predicted = network(x).argmax(1)
        victims = Victims(network, Balls.around(x, limit.value, norm), predicted, list(range(16)))
        best = in_turn(victims, attack._runs(victims)).point
        length = norms(best.double() - x.double(), norm)
        assert bool((length <= limit.value).all()), f"{norm}: outside by {float(length.max()) - limit.value:.3g}"
        assert bool((length > 0.5 * limit.value).all()), f"{norm}: the attack does not use its ball"


@every_norm
def test_the_counterexample_of_a_linear_network_is_found(norm: Norm) -> None:
    kind = Kind("", lambda: mlp((6, 4)), (6,))
    network, x = kind.network(seed=3), 0.45 + 0.1 * images((6,), 8)
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight @ x.mean(0))
    (layer,) = oracles.layers_of(network)
    for image in x[:3]:
        exact = oracles.linear_radius(*layer, image.double().numpy(), norm.value)
        over, under = (attack(network, image[None], norm, exact * factor) for factor in (1.05, 0.99))
        assert over["status"][0] == Status.FALSIFIED, f"nothing found at 1.05 times the exact radius {exact}"
        assert over["distance"][0] >= exact * (1 - 1e-5), "a counterexample nearer than the exact radius"
        assert over["distance"][0] <= exact * 1.05, "a counterexample outside the ball"
        assert under["status"][0] == Status.NOT_CERTIFIED, "a counterexample inside the exact radius"


@every_norm
@pytest.mark.thin(2)
def test_a_sample_is_attacked_alike_in_any_batch(norm: Norm) -> None:
    kind = BY_NAME["deep mlp"]
    network, x = kind.network().double(), kind.images(7).double()
    indices = torch.tensor([40, 3, 17, 8, 25, 1, 99])
    whole = attack(network, x, norm, EPS[norm], indices)
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    shuffled = attack(network, x[order], norm, EPS[norm], indices[order])
    for key in ("status", "margin", "distance"):
        parts = [attack(network, x[i : i + 3], norm, EPS[norm], indices[i : i + 3])[key] for i in (0, 3, 6)]
        np.testing.assert_allclose(np.concatenate(parts), whole[key], rtol=1e-6, err_msg=f"{key} depends on the batch")
        np.testing.assert_allclose(shuffled[key], whole[key][order], rtol=1e-6, err_msg=f"{key} depends on the order")


def test_starts_are_keyed_by_seed_and_index() -> None:
    x, eps = BY_NAME["mlp"].images(1).repeat(3, 1), torch.full((3,), 0.1)
    start = keyed_start(x, eps, Norm.LINF, 0, [4, 9, 4], 1)
    assert torch.equal(start[0], start[2]), "the same index starts elsewhere"
    assert not torch.equal(start[0], start[1]), "two indices share a start"
    assert not torch.equal(start[0], keyed_start(x, eps, Norm.LINF, 0, [4, 9, 4], 2)[0]), "restarts share one"
    assert not torch.equal(start[0], keyed_start(x, eps, Norm.LINF, 1, [4, 9, 4], 1)[0]), "seeds share one"


def test_a_network_of_equal_logits_has_no_counterexample() -> None:
    network = mlp((4, 3)).eval()
    with torch.no_grad():
        network[1].weight.zero_(), network[1].bias.zero_()
    rows = attack(network, images((4,), 2), Norm.LINF, 0.1)
    assert (rows["status"] == Status.NOT_CERTIFIED).all(), "the class cannot change, yet a counterexample is stored"


def test_margins_are_to_the_best_other_class() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5], [4.0, -1.0, 4.0]])
    assert margins(logits, torch.tensor([1, 0])).tolist() == [0.5, 0.0], "not own logit less the best other"
    assert margins(logits, torch.tensor([0, 1])).tolist() == [-2.0, -5.0], "not own logit less the best other"


# Reading eps


@pytest.mark.parametrize(
    ("given", "value", "text"),
    [
        ("2/255", 2 / 255, "2/255"),
        ("0.03", 0.03, "0.03"),
        ("1e-3", 1e-3, "1e-3"),
        (" 8 / 255 ", 8 / 255, "8/255"),
        (8 / 255, 8 / 255, str(8 / 255)),
        (1, 1.0, "1"),
    ],
)
def test_eps_is_read_exactly_and_keeps_its_text(given: str | float, value: float, text: str) -> None:
    eps = Epsilon.parse(given)
    assert eps.value == value and eps.text == text and str(eps) == text, f"{given!r} became {eps}"
    assert Epsilon.parse(eps) is eps and Epsilon.parse(eps.text).value == value, "reading it again changes it"


WRONG = ["2/0", "-1", "0", "nan", "inf", "-inf", "abc", "", "1/2/3", "0x10", "1e400", "1e-400", "8/255px", "1,5"]


@pytest.mark.parametrize("given", [*WRONG, True, math.nan, math.inf, -0.5, 0.0, 0], ids=repr)
def test_what_is_not_a_radius_is_refused_and_repeated(given: str | float) -> None:
    with pytest.raises(InputError) as refusal:
        Epsilon.parse(given)
    message = str(refusal.value)
    assert repr(given) in message, f"the message does not repeat {given!r}: {message}"
    assert "8/255" in message and "\n" not in message, f"the message does not say what to write: {message}"
