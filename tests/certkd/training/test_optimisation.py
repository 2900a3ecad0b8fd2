"""One step and what surrounds it: precision, parts of a batch, averages, compiled and refused networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from certkd.config.settings import Recipe
from certkd.objectives import Kd, Kdiga, Objective, Standard
from certkd.objectives.base import Batch, Terms
from certkd.training.average import Average
from certkd.training.step import backward
from certkd.training.trial import try_step
from tests.certkd.training.test_training import (
    FAST,
    Interrupted,
    Keeper,
    Listener,
    assert_same_state,
    busy,
    fit,
    log_of,
    plain,
    samples,
    seeded,
    state_of,
    without_seconds,
)
from tests.training import train
from verifiers.core.errors import InputError


def batch_of(student: nn.Module, count: int = 30, teacher: nn.Module | None = None) -> Batch:
    """The first images, for a student in train mode."""
    x, y = samples(count)
    return Batch(student.train(), teacher, x, y, torch.Generator().manual_seed(0))


def convolutional(seed: int = 0) -> nn.Module:
    """Convolutions without batch statistics."""

    def make() -> nn.Module:
        body = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*body, nn.Linear(128, 4))

    return seeded(make, seed)


# ------------------------------------------------------------------------------------------------------------ precision


def test_bfloat16_trains_like_float32() -> None:
    losses = []
    for kind in ("float32", "bfloat16"):
        student = convolutional()
        recipe = Recipe(epochs=4, batch_size=32, optimizer=FAST, precision=kind)  # type: ignore[arg-type]
        losses.append([record["terms"]["loss"] for record in fit(student, recipe=recipe).history])
        assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05), "the losses of both precisions are far apart"
    assert losses[1] != losses[0], "bfloat16 changes nothing: it is not used"
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("target", ["ce", "projection", "finite_difference"])
def test_alignment_under_bfloat16_is_that_of_float32(target: Any) -> None:
    """Value and parameter gradient, for a student whose weights are a third away from its teacher's."""
    teacher, student = convolutional(1).eval(), convolutional(1)
    draws = torch.Generator().manual_seed(2)
    for weight in student.parameters():
        weight.data += 0.3 * weight.data.abs().mean() * torch.randn(weight.shape, generator=draws)
    point: dict[str, Any] = {"point": "random", "eps": 0.1} if target == "finite_difference" else {}
    objective = Kdiga(target=target, lambda_ce=0, lambda_kl=0, **point)
    found = []
    for kind in ("float32", "bfloat16"):
        student.zero_grad()
        recipe = Recipe(precision=kind)  # type: ignore[arg-type]
        terms, _ = backward(objective, batch_of(student, teacher=teacher), recipe)
        slopes = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        found.append((float(terms["iga"].value), slopes))
    (exact, slope), (value, other) = found
    assert exact > 0 and value == pytest.approx(exact, rel=0.02)
    assert float(torch.cosine_similarity(slope, other, dim=0)) > 0.99


@pytest.mark.parametrize(
    "objective", [Standard(), Kd(), Kdiga(target="ce"), Kdiga(target="projection")], ids=lambda o: o.kind
)
def test_bfloat16_reaches_the_layers(objective: Objective) -> None:
    seen: set[torch.dtype] = set()
    student = convolutional()
    student[2].register_forward_hook(lambda module, given, answer: seen.add(answer.dtype))  # type: ignore[index]
    backward(objective, batch_of(student, teacher=convolutional(1).eval()), Recipe(precision="bfloat16"))
    assert seen == {torch.bfloat16}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters())


# ----------------------------------------------------------------------------------------------------- parts of a batch


class Remembers(Standard):
    """Cross-entropy; counts the samples of each call."""

    def terms(self, batch: Batch) -> Terms:
        batch.memory[str(len(batch.memory))] = float(len(batch.y))
        return super().terms(batch)


@pytest.mark.parametrize("parts", [2, 4, 7, 30, 99])
@pytest.mark.parametrize("objective", [Standard(), Kd(), Kdiga(target="ce")], ids=lambda o: o.kind)
def test_parts_add_up_to_the_whole_batch(objective: Objective, parts: int) -> None:
    gradients, values = [], []
    for count in (1, parts):
        student = plain()
        terms, loss = backward(objective, batch_of(student, teacher=plain(1)), Recipe(accumulate=count))
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
        values.append([float(loss), *(float(term.value) for term in terms.values())])
    assert len(gradients[0]) == 4 and values[1] == pytest.approx(values[0], rel=1e-5)
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_a_batch_is_gone_through_in_almost_equal_parts() -> None:
    batch = batch_of(plain(), count=30)
    backward(Remembers(), batch, Recipe(accumulate=4))
    assert list(batch.memory.values()) == [8, 8, 7, 7]


def test_parts_train_like_whole_batches() -> None:
    losses = []
    for count in (1, 3):
        recipe = Recipe(epochs=2, batch_size=50, optimizer=FAST, accumulate=count)
        losses.append([record["terms"]["loss"] for record in fit(plain(), recipe=recipe).history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_parts_of_a_norm_over_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"accumulate 2 with reduction batch_frobenius.*set accumulate to 1"):
        fit(plain(), Kdiga(reduction="batch_frobenius"), teacher=plain(1), recipe=Recipe(accumulate=2))


# ----------------------------------------------------------------------------------------------------- averaged weights


def numbered(value: float) -> nn.Module:
    """Weights and statistics that are all the same number, and an integer buffer."""
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    for tensor in module.state_dict().values():
        tensor.fill_(value)
    return module


def test_moving_average_against_a_literal_loop() -> None:
    average = Average(numbered(0), Recipe(average="ema", average_decay=0.6, epochs=1))
    expected = 1.0
    for count, value in enumerate((1.0, 5.0, 2.0, 9.0, 7.0)):
        average.step(numbered(value), 0)
        decay = min(0.6, (1 + count) / (10 + count))
        expected = value if count == 0 else decay * expected + (1 - decay) * value
        state = average.network(numbered(0), 0).state_dict()
        for name in ("0.weight", "1.running_var"):
            assert float(state[name].ravel()[0]) == pytest.approx(expected), f"{name} after {count + 1} steps"
        assert int(state["1.num_batches_tracked"]) == value, "a count is not averaged"


def test_mean_of_epochs_against_the_mean() -> None:
    average = Average(numbered(0), Recipe(average="swa", epochs=8))
    assert average.first == 6, "three quarters of the epochs"
    last = numbered(99)
    for epoch, value in enumerate((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 20.0)):
        average.step(numbered(50), epoch)
        average.epoch(numbered(value), epoch)
        shown = average.network(last, epoch)
        assert (shown is last) == (epoch < 6)
    assert float(shown.state_dict()["0.weight"].ravel()[0]) == 15.0


def test_constants_of_a_network_stay_exactly() -> None:
    student = busy()
    student.register_buffer("constant", torch.rand(100))
    average = Average(student, Recipe(average="ema"))
    for _ in range(50):
        average.step(student, 0)
    assert_same_state(dict(average.averaged.module.state_dict()), state_of(student), "the average of equal networks")


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.5, 2), (0.99, 3), (None, 0)])
def test_average_begins_where_asked_and_in_the_last_epoch_at_the_latest(share: float | None, first: int) -> None:
    assert Average(plain(), Recipe(average="ema", average_from=share, epochs=4)).first == first


AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"average": "ema", "average_decay": 0.9},
    "late ema": {"average": "ema", "average_from": 0.5},
    "swa": {"average": "swa", "average_from": 0.4},
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_what_is_measured_saved_and_returned_is_the_average(tmp_path: Path, kind: str) -> None:
    recipe = Recipe(epochs=5, batch_size=32, optimizer=FAST, **AVERAGES[kind])
    student = busy()
    keeper = Keeper(student)
    result = fit(student, recipe=recipe, out=tmp_path, reporter=keeper)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert not torch.equal(last["0.weight"], keeper.states[-1]["0.weight"]), "last.pt is the network without averaging"
    assert_same_state(student.state_dict(), torch.load(tmp_path / "best.pt", weights_only=True), "the returned student")
    whole = fit(busy(), recipe=Recipe(epochs=5, batch_size=32, optimizer=FAST))
    losses = [[record["terms"]["loss"] for record in found.history] for found in (result, whole)]
    assert losses[0] == losses[1], "the average must not change what is trained"


def test_mean_of_epochs_in_a_training_is_that_of_their_weights(tmp_path: Path) -> None:
    student = busy()
    keeper = Keeper(student)
    fit(student, recipe=Recipe(epochs=5, batch_size=32, average="swa", average_from=0.6), out=tmp_path, reporter=keeper)
    found = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("0.weight", "1.running_mean"):
        expected = torch.stack([state[name] for state in keeper.states[3:]]).mean(0)
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("stop", [{"at_step": 7}, {"after_epoch": 3}], ids=str)
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.thin(2)
def test_resumed_training_has_the_same_average(tmp_path: Path, kind: str, stop: dict[str, int]) -> None:
    recipe = Recipe(epochs=5, batch_size=32, optimizer=FAST, **AVERAGES[kind])
    whole = fit(busy(), recipe=recipe, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(busy(), recipe=recipe, out=tmp_path / "parts", reporter=Listener(**stop))
    again = fit(busy(3), recipe=recipe, out=tmp_path / "parts", resume=True)
    assert without_seconds(again.history) == without_seconds(whole.history)
    for name in ("best.pt", "last.pt"):
        one, other = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "parts"))
        assert_same_state(other, one, f"{name} of the resumed training")


def test_resume_with_averaging_of_a_training_without_it_is_refused(tmp_path: Path) -> None:
    fit(busy(), out=tmp_path)
    with pytest.raises(InputError, match="belongs to another network or optimizer"):
        fit(busy(), recipe=Recipe(epochs=5, average="ema"), out=tmp_path, resume=True)


# ------------------------------------------------------------------------------------------------------ memory layout


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    states, seen = [], list[bool]()
    for wanted in (False, True):
        student = convolutional()
        hook = student[2].register_forward_pre_hook(  # type: ignore[index]
            lambda module, given: (
                seen.append(given[0].is_contiguous(memory_format=torch.channels_last)) if module.training else None
            )
        )
        fit(student, recipe=Recipe(epochs=2, batch_size=32, channels_last=wanted))
        hook.remove()
        states.append(state_of(student))
        assert all(seen) == wanted and all(parameter.is_contiguous() for parameter in student.parameters())
        seen.clear()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5)


def test_channels_last_takes_flat_images() -> None:
    x, y = samples()
    student = seeded(lambda: nn.Linear(16, 4), 0)
    recipe = Recipe(epochs=1, channels_last=True)
    assert len(train(student, (x.flatten(1), y), Standard(), recipe=recipe, device="cpu").history) == 1


# -------------------------------------------------------------------------------------------- the trial before training


class Once(torch.autograd.Function):
    """x^2 with a gradient that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class Broken(nn.Module):
    """Fails in train mode only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no kernel image\nis available")
        return x


def with_layer(layer: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), layer, nn.Linear(8, 4)), 0)


def refused(tmp_path: Path, student: nn.Module, objective: Objective, **recipe: Any) -> str:
    """The line that refuses a training before anything is written."""
    listener, out, before = Listener(), tmp_path / "out", state_of(student)
    out.mkdir()
    with pytest.raises(InputError) as caught:
        fit(student, objective, teacher=plain(1), out=out, recipe=Recipe(epochs=1, **recipe), reporter=listener)
    assert not list(out.iterdir()) and set(listener.calls) <= {"warn"}, "something was begun before the refusal"
    assert_same_state(student.state_dict(), before, "the refused student")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", ["ce", "projection"])
def test_a_network_without_second_derivatives_is_refused_at_once(tmp_path: Path, target: Any) -> None:
    message = refused(tmp_path, with_layer(Squares()), Kdiga(target=target))
    for part in ("'kdiga' needs second derivatives", "once_differentiable", "use target: finite_difference"):
        assert part in message, message


def test_a_term_that_comes_later_is_tried_too(tmp_path: Path) -> None:
    assert "second derivatives" in refused(tmp_path, with_layer(Squares()), Kdiga(ramp=1))


def test_the_way_out_works() -> None:
    objective = Kdiga(target="finite_difference", point="random", eps=0.1)
    assert len(fit(with_layer(Squares()), objective, teacher=plain(1)).history) == 3


def test_any_failure_of_torch_is_one_line(tmp_path: Path) -> None:
    message = refused(tmp_path, with_layer(Broken()), Standard())
    assert message == "the objective 'standard' does not run on this student: no kernel image is available"


def test_a_trial_leaves_the_students_gradients_and_statistics() -> None:
    student = busy()
    before = state_of(student)
    try_step(Standard(), batch_of(student, 4), Recipe(accumulate=4))
    assert all(parameter.grad is None for parameter in student.parameters())
    assert_same_state(student.state_dict(), before, "the student after the trial")


def test_a_trial_changes_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for without in (False, True):
        if without:
            monkeypatch.setattr("certkd.training.loop.try_training", lambda run: None)
        student = busy()
        fit(student, Kd(sigma=0.1), teacher=plain(1))
        states.append(state_of(student))
    assert_same_state(states[1], states[0], "a training that was not tried first")


def test_a_resumed_training_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()
    monkeypatch.setattr("certkd.training.loop.try_training", lambda run: tried.append(1))
    with pytest.raises(Interrupted):
        fit(plain(), out=tmp_path, reporter=Listener(after_epoch=0))
    assert tried == [1]
    fit(plain(), out=tmp_path, resume=True)
    assert tried == [1] and len(log_of(tmp_path)) == 3


# --------------------------------------------------------------------------------------------------------- compilation


def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile with its quickest back end that still differentiates ahead of time."""
    original: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: original(model, backend="aot_eager", **options))


@pytest.mark.slow
def test_compiled_forward_passes_train_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    students, calls = (plain(), plain()), list[int]()
    monkeypatch.setattr(torch, "compile", lambda m, f=torch.compile, **o: (calls.append(1), f(m, **o))[1])
    for student, wanted in zip(students, (False, True), strict=True):
        fit(student, recipe=Recipe(epochs=2, batch_size=32, compile=wanted), out=tmp_path / str(wanted))
    assert calls, "nothing was compiled"
    for name, value in students[0].state_dict().items():
        torch.testing.assert_close(students[1].state_dict()[name], value, rtol=1e-4, atol=1e-6)
    saved = torch.load(tmp_path / "True" / "best.pt", weights_only=True)
    assert_same_state(saved, state_of(students[1]), "best.pt has the names of the network that was given")


@pytest.mark.slow
def test_a_compiled_network_has_no_second_derivatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    message = refused(tmp_path, plain(), Kdiga(), compile=True)
    assert "needs second derivatives" in message and "use compile: false or target: finite_difference" in message


@pytest.mark.slow
def test_the_usual_compiler_trains_the_same_network() -> None:
    states = []
    for wanted in (False, True):
        student = plain()
        fit(student, recipe=Recipe(epochs=1, batch_size=60, compile=wanted))
        states.append(state_of(student))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
