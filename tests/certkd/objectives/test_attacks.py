"""PGD: inside the ball and the image box, equal to literal loops, and the network is left as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.objectives.attacks import Pgd
from verifiers.core.quantities import Norm

EPS = 0.1
ORDER = {Norm.LINF: float("inf"), Norm.L2: 2.0, Norm.L1: 1.0}
#: Rounding x + delta to float32 moves each of the 16 pixels by up to 6e-8.
ROUNDING = 2e-6


def network(seed: int = 0) -> nn.Module:
    """A small classifier with batch normalisation and dropout, in train mode, with gradients everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(64, 4))


def images(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with some pixels at 0 and at 1, and labels of four classes."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.4 * torch.rand((count, 1, 4, 4), generator=generator) - 0.2).clamp(0, 1)
    return x, torch.arange(count) % 4


def pgd(model: nn.Module, x: Tensor, y: Tensor, *, start: torch.Generator | None = None, **settings: Any) -> Tensor:
    """Adversarial images of an attack with those settings."""
    return Pgd(**settings).fool(model, x, y, start)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of one image's loss in its pixels."""
    x = x.clone().requires_grad_(True)
    loss = F.cross_entropy(model(x[None]), y[None])
    return torch.autograd.grad(loss, x)[0]


def literal_pgd(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, steps: int, size: float) -> Tensor:
    """PGD in the linf ball, one image and one pixel at a time; ``noise`` in [-1, 1] gives the start."""
    found = []
    for image, label, start in zip(x, y, noise, strict=True):
        point = [min(max(p + eps * n, 0.0), 1.0) for p, n in zip(image.ravel().tolist(), start.ravel(), strict=True)]
        for _ in range(steps):
            current = torch.tensor(point, dtype=x.dtype).reshape(image.shape)
            signs = slope(model, current, label).ravel().sign().tolist()
            moved = [p + size * s for p, s in zip(point, signs, strict=True)]
            inside = [min(max(p, c - eps), c + eps) for p, c in zip(moved, image.ravel().tolist(), strict=True)]
            point = [min(max(p, 0.0), 1.0) for p in inside]
        found.append(torch.tensor(point, dtype=x.dtype).reshape(image.shape))
    return torch.stack(found)


@pytest.mark.parametrize("start", [None, 7], ids=["from x", "random start"])
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.6])
@pytest.mark.parametrize("norm", list(Norm))
def test_example_stays_in_ball_and_box(norm: Norm, eps: float, start: int | None) -> None:
    model, (x, y) = network(), images()
    adversarial = pgd(model, x, y, eps=eps, norm=norm, start=None if start is None else generator(start))
    length = torch.linalg.vector_norm((adversarial.double() - x.double()).flatten(1), ORDER[norm], dim=1)
    assert float(length.max()) <= eps + ROUNDING, f"left the {norm} ball of {eps}: {length.max():.8f}"
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1, "left the image box"


def test_linf_attack_uses_the_ball() -> None:
    model, (x, y) = network(), images()
    adversarial = pgd(model, x, y, eps=EPS, start=generator())
    largest = (adversarial - x).abs().flatten(1).amax(1)
    assert float(largest.min()) > 0.9 * EPS, f"an example moves {largest.min():.4f} only, of {EPS} allowed"


@pytest.mark.parametrize("norm", list(Norm))
def test_attack_raises_every_loss_and_more_than_noise(norm: Norm) -> None:
    model, (x, y) = network(), images()
    eps = {Norm.LINF: 0.1, Norm.L2: 0.5, Norm.L1: 1.0}[norm]
    if norm is Norm.L1:  # its steepest step moves the steepest pixels only, and not past 0 or 1
        x = x.clamp(0.3, 0.7)
    noise = pgd(model, x, y, eps=eps, norm=norm, steps=1, step_size=1e-9, start=generator())
    adversarial = pgd(model, x, y, eps=eps, norm=norm, steps=20)
    before, random, after = (losses(model, z, y) for z in (x, noise, adversarial))
    assert bool((after > before).all()), f"{norm}: the attack lowered a loss by {(before - after).max():.2e}"
    assert float(after.mean()) > float(random.mean()), f"{norm}: the attack is no better than its random start"


@pytest.mark.parametrize("step_size", [None, 0.03])
def test_pgd_equals_a_literal_loop(step_size: float | None) -> None:
    model, (x, y) = network().double().eval(), images(4)
    x = x.double()
    noise = torch.rand(x.shape, generator=generator(), dtype=x.dtype) * 2 - 1
    literal = literal_pgd(model, x, y, noise, EPS, 6, 2.5 * EPS / 6 if step_size is None else step_size)
    ours = pgd(model, x, y, eps=EPS, steps=6, step_size=step_size, start=generator())
    torch.testing.assert_close(ours, literal, rtol=0, atol=1e-12)


def test_step_size_is_in_pixels() -> None:
    model, (x, y) = network(), images()
    interior = x.clamp(0.3, 0.7)
    moved = (pgd(model, interior, y, eps=0.2, steps=1, step_size=0.03) - interior).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.03), rtol=0, atol=1e-7)


def test_one_full_step_is_the_clamped_sign() -> None:
    model, (x, y) = network().eval(), images()
    expected = torch.stack([image + EPS * slope(model, image, label).sign() for image, label in zip(x, y, strict=True)])
    torch.testing.assert_close(
        pgd(model, x, y, eps=EPS, steps=1, step_size=EPS), expected.clamp(0, 1), rtol=0, atol=1e-7
    )


def test_one_full_step_in_l2_goes_eps_along_the_gradient() -> None:
    model, (x, y) = network().eval(), images()
    interior = x.clamp(0.3, 0.7)
    delta = (pgd(model, interior, y, eps=0.2, norm=Norm.L2, steps=1, step_size=0.2) - interior).flatten(1)
    slopes = torch.stack([slope(model, image, label) for image, label in zip(interior, y, strict=True)]).flatten(1)
    torch.testing.assert_close(delta, 0.2 * slopes / slopes.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_network_and_images_are_left_as_they_were(training: bool) -> None:
    model, (x, y) = network().train(training), images()
    model[3].eval()  # type: ignore[operator]  # a mixture of modes must survive too
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    image, label = x.clone(), y.clone()
    pgd(model, x, y, eps=EPS, start=generator())
    pgd(model, x, y, eps=EPS, steps=1, step_size=EPS)
    assert [module.training for module in model.modules()] == modes, "the attack changed a training mode"
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), f"the attack changed {name}"
    assert all(p.grad is None for p in model.parameters()), "the attack left gradients on the weights"
    assert torch.equal(x, image) and torch.equal(y, label) and not x.requires_grad, "the attack changed its input"


def test_network_is_restored_after_an_error() -> None:
    model, (x, y) = network(), images()
    with pytest.raises(IndexError):
        pgd(model, x, y + 4, eps=EPS)
    assert all(module.training for module in model.modules()), "a failed attack left the network in eval mode"


def test_network_is_attacked_in_eval_mode() -> None:
    """With dropout and batch statistics the gradient would depend on the other images of the batch."""
    model, (x, y) = network(), images()
    alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], eps=EPS) for i in range(len(x))])
    torch.testing.assert_close(pgd(model, x, y, eps=EPS), alone, rtol=0, atol=1e-6)


def test_example_depends_on_the_generator_alone() -> None:
    model, (x, y) = network(), images()
    arguments: dict[str, Any] = {"eps": EPS, "steps": 3, "step_size": 0.01}
    torch.manual_seed(0)
    first = pgd(model, x, y, start=generator(1), **arguments)
    torch.manual_seed(1)
    assert torch.equal(first, pgd(model, x, y, start=generator(1), **arguments)), "same generator, other example"
    assert not torch.equal(first, pgd(model, x, y, start=generator(2), **arguments)), "the start is not random"
    assert not first.requires_grad, "the example carries a graph"
