"""Our Adam against torch's, to the last bit."""

import torch
from torch import Tensor

from verifiers.runtime.optimizer import Adam

RATES = [0.1, 0.1, 0.03, 0.03, 0.01, 1e-4]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (7,), (2, 1, 3, 3))]


def gradients(step: int) -> list[Tensor | None]:
    """Gradients of many sizes; the second tensor has none in the first steps, and a zero one later."""
    generator = torch.Generator().manual_seed(step + 1)
    found: list[Tensor | None] = [torch.randn(x.shape, generator=generator) * 10.0 ** (step - 3) for x in start()]
    found[1] = None if step < 2 else torch.zeros(7) if step == 3 else found[1]
    return found


def steps(optimizer: Adam, parameters: list[Tensor], numbers: range) -> None:
    for number in numbers:
        optimizer.rate = RATES[number]
        optimizer.zero_grad()
        for parameter, gradient in zip(parameters, gradients(number), strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_steps_are_torchs_to_the_last_bit() -> None:
    ours, theirs = start(), start()
    steps(Adam(ours, RATES[0]), ours, range(6))
    reference = torch.optim.Adam(theirs, lr=RATES[0])
    for number in range(6):
        reference.param_groups[0]["lr"] = RATES[number]
        for parameter, gradient in zip(theirs, gradients(number), strict=True):
            parameter.grad = gradient
        reference.step()
    for mine, other, first in zip(ours, theirs, start(), strict=True):
        assert torch.equal(mine, other) and not torch.equal(mine, first)


def test_a_step_changes_no_gradient() -> None:
    parameter, gradient = torch.ones(3), torch.tensor([1.0, -2.0, 3.0])
    parameter.grad = gradient.clone()
    optimizer = Adam([parameter], 0.1)
    optimizer.step()
    optimizer.step()
    assert torch.equal(parameter.grad, gradient)


def test_rows_that_are_kept_move_as_if_they_were_alone() -> None:
    whole, chosen = torch.arange(12.0).reshape(4, 3), torch.tensor([True, False, True, True])
    gradients = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
    both = [Adam([whole.clone()], 0.1), Adam([whole[chosen].clone()], 0.1)]
    for step, gradient in enumerate(gradients):
        if step == 2:
            both[0].keep(chosen)
        for one in both:
            one.parameters[0].grad = gradient if len(one.parameters[0]) == 4 else gradient[chosen]
            one.step()
    assert torch.equal(both[0].parameters[0], both[1].parameters[0])
