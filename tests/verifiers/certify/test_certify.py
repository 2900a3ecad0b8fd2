"""What ``certify`` promises for every method: statuses, memory, restored state, refusals and equal answers."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.results.test_store import equal_but_seconds
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.certify import answers, identity
from verifiers.certify.attacked import refuted
from verifiers.certify.certify import check_types
from verifiers.certify.config import CertifyConfig
from verifiers.core.columns import Columns
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import FAILURES, Guarantee, Status
from verifiers.graph.program import Program
from verifiers.methods import registry as methods
from verifiers.methods.base import Method
from verifiers.results import reader
from verifiers.results.rows import Certificates, MethodRows
from verifiers.runtime.certifier import Answer, Batch, Certifier
from verifiers.runtime.fingerprint import DataFingerprint, structure_sha256, weights_sha256
from verifiers.runtime.samples import Data, validate

EPS = "1/20"
WRONG = 3  # the first samples carry a wrong label
COUNT = 24
QUICK: dict[str, int | float] = {"steps": 5, "restarts": 2}


def network(seed: int = 0) -> nn.Sequential:
    """Four inputs, three classes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def images_of(count: int = COUNT) -> Tensor:
    """Random images with four pixels."""
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(1))


def labels_of(model: nn.Module, images: Tensor, wrong: int = WRONG) -> Tensor:
    """The predictions, except that the first few are wrong."""
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 3
    return labels


def run(
    *names: str, model: nn.Module | None = None, images: Tensor | None = None, labels: Tensor | None = None, **more: Any
) -> Certificates:
    """Certify the small network on its samples."""
    model = network() if model is None else model
    images = images_of() if images is None else images
    labels = labels_of(network(), images) if labels is None else labels
    return certify(model, images, labels, **{"eps": EPS, "methods": names, **more})


Reply = Callable[[Batch], Columns]


@dataclass
class Fake:
    """A certifier that answers what a test wants, and remembers what it was asked."""

    answer: Reply
    batch_size: int = 8
    notes: Mapping[str, str] = field(default_factory=dict)
    asked: list[list[int]] = field(default_factory=list)

    @property
    def samples(self) -> list[int]:
        """Indices of all samples that it was asked about, in order."""
        return [index for batch in self.asked for index in batch]

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        self.asked.append(batch.indices.tolist())
        yield Answer(batch.rows, self.answer(batch))


def answer(status: Status, radius: float = 0.0) -> Reply:
    """The same answer for every row."""

    def same(batch: Batch) -> Columns:
        return {
            "status": np.full(len(batch), status.value, "uint8"),
            "radius": np.full(len(batch), radius),
            "margin": np.full(len(batch), 1.0),
        }

    return same


Install = Callable[..., Fake]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Adds a method named "fake" to the methods; no attack holds its claims against the network."""
    monkeypatch.setattr(answers, "refuted", lambda *given: torch.zeros((2, len(given[2])), dtype=torch.bool))

    def add(given: Reply, worth: Guarantee = Guarantee.DETERMINISTIC, prepared: Any = None) -> Fake:
        fake = Fake(given)

        class FakeMethod(Method):
            kind: Literal["fake"] = "fake"
            guarantee: ClassVar[Guarantee] = worth
            norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF,)
            claim: ClassVar[str] = "none"
            paper: ClassVar[str] = "none"
            cost: ClassVar[str] = "none"

            def prepare(self, program: Program, samples: Tensor, question: Question) -> Certifier:
                return prepared(program, samples, question) if prepared else fake

        monkeypatch.setitem(methods.BY_KIND, "fake", FakeMethod)
        return fake

    return add


class Recorder(Reporter):
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def clean(self, accuracy: float, samples: int) -> None:
        self.calls.append(("clean", accuracy, samples))

    def start(self, method: str, total: int, done: int) -> None:
        self.calls.append(("start", method, total, done))

    def advance(self, rows: int) -> None:
        self.calls.append(("advance", rows))

    def finish(self, method: str) -> None:
        self.calls.append(("finish", method))

    def warn(self, text: str) -> None:
        self.calls.append(("warn", text))

    @property
    def warnings(self) -> list[str]:
        """All warnings."""
        return [call[1] for call in self.calls if call[0] == "warn"]


def assert_total(rows: MethodRows) -> None:
    """One status a row; a radius exactly where it is CERTIFIED; certified where correct and the radius reaches eps."""
    assert (rows["status"] != Status.PENDING).all(), "a row has no status"
    assert set(rows["status"]) <= {s.value for s in Status}, "a status that does not exist"
    radius = rows["radius"]
    assert np.isfinite(radius).all(), "a radius that is not a number"
    assert ((radius > 0) == (rows["status"] == Status.CERTIFIED)).all(), "a radius and no certificate, or the reverse"
    assert (rows["certified"] == ((rows["correct"] == 1) & (radius >= rows.eps))).all(), "certified breaks its rule"


# Statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.PENDING}))
@pytest.mark.thin(2)
def test_every_status_of_a_method_is_stored(install: Install, status: Status) -> None:
    install(answer(status, 0.2))
    rows = run("fake")["fake"]
    assert_total(rows)
    assert (rows["status"][WRONG:] == status).all()
    assert (rows["radius"][WRONG:] == (0.2 if status is Status.CERTIFIED else 0.0)).all(), "radius without a proof"


def test_misclassified_rows_stay_in_the_denominator(install: Install) -> None:
    fake = install(answer(Status.CERTIFIED, 0.2))
    rows = run("fake")["fake"]
    assert_total(rows)
    assert (rows["status"][:WRONG] == Status.MISCLASSIFIED).all()
    assert len(rows) == COUNT
    assert rows["certified"].mean() == (COUNT - WRONG) / COUNT, "certified accuracy leaves out misclassified samples"
    assert sorted(fake.samples) == list(range(WRONG, COUNT)), "a misclassified sample was given to the method"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.thin(2)
def test_logits_that_are_not_finite_are_an_error(install: Install, value: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.sum(1), -x.sum(1), 0 * x[:, 0]], 1)
            logits[x[:, 0] > 0.5] = value
            return logits

    fake = install(answer(Status.CERTIFIED, 0.2))
    images, recorder = images_of(), Recorder()
    broken = (images[:, 0] > 0.5).numpy()
    assert 0 < broken.sum() < COUNT, "the samples are too much alike"
    labels = torch.zeros(COUNT, dtype=torch.long)  # argmax of nan is 0 as well: it must not count as right
    rows = run("fake", model=Broken(), images=images, labels=labels, reporter=recorder)["fake"]
    assert_total(rows)
    assert (rows["status"][broken] == Status.ERROR).all()
    assert (rows["status"][~broken] == Status.CERTIFIED).all(), "good rows suffer from bad ones"
    assert (rows["correct"] == ~broken).all(), "logits that are not finite count as a right prediction"
    assert recorder.calls[0][1] == pytest.approx((~broken).mean()), "clean accuracy counts them as well"
    assert not set(fake.samples) & set(np.flatnonzero(broken)), "the method was asked about such a row"


@pytest.mark.parametrize("radius", [float("nan"), float("inf"), 0.0, -0.1])
def test_an_impossible_radius_never_certifies(install: Install, radius: float) -> None:
    install(answer(Status.CERTIFIED, radius))
    rows = run("fake")["fake"]
    assert_total(rows)
    assert (rows["status"][WRONG:] == Status.ERROR).all()


def test_a_method_that_leaves_rows_pending_is_an_error(install: Install) -> None:
    install(answer(Status.PENDING))
    with pytest.raises(RuntimeError, match="the certifier of fake gave some of 8 rows no answer"):
        run("fake")


def test_an_estimate_has_no_radius(install: Install) -> None:
    install(answer(Status.CERTIFIED, 0.2), worth=Guarantee.ESTIMATE)
    rows = run("fake")["fake"]
    assert_total(rows)
    assert (rows["certified"] == 0).all(), "an estimate fed a radius"


@pytest.mark.parametrize(("factor", "certified"), [(1 - 1e-12, 0), (1.0, 1), (2.0, 1)])
def test_certified_at_eps_itself(install: Install, factor: float, certified: int) -> None:
    install(answer(Status.CERTIFIED, factor / 20))
    rows = run("fake")["fake"]
    assert_total(rows)
    assert (rows["certified"][WRONG:] == certified).all(), f"radius {factor} x eps"
    assert (rows["certified"][:WRONG] == 0).all(), "a misclassified row is certified"


# Methods that cannot ----------------------------------------------------------------------------------------------


@pytest.fixture
def without_auto_lirpa(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without auto-LiRPA."""
    original = importlib.util.find_spec
    monkeypatch.setattr(compat, "version", lambda: None)
    monkeypatch.setattr(identity, "auto_lirpa_version", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "LiRPA" in name else original(name))
    compat.load.cache_clear()
    yield
    compat.load.cache_clear()


def test_without_auto_lirpa_the_other_methods_work(without_auto_lirpa: None) -> None:
    recorder = Recorder()
    native = run("ibp", cross_check=2)["ibp"]
    assert native.attributes["engine"] == "native" and native.count(Status.UNSUPPORTED) == 0, "the other engine works"
    assert native.attributes["cross_check"] == f"not cross-checked: {compat.INSTALL}", "the file must say why"
    assert "passed_over" not in native.attributes, "the default engine was passed over"
    certificates = run("ibp", "pgd", options=QUICK, engine="auto-lirpa", reporter=recorder)
    ibp = certificates["ibp"]
    assert_total(ibp)
    assert (ibp["status"][WRONG:] == Status.UNSUPPORTED).all()
    assert ibp.attributes["reason"] == compat.INSTALL, "the reason must be the install line"
    assert "pip install --no-deps auto-LiRPA" in recorder.warnings[0]
    assert certificates["pgd"].count(Status.UNSUPPORTED) == 0
    assert certificates.attributes["auto_lirpa_version"] == "not installed"


def test_a_reason_is_forgotten_when_the_method_works_later(tmp_path: Path, without_auto_lirpa: None) -> None:
    assert "reason" in run("ibp", engine="auto-lirpa", out=tmp_path / "a.h5")["ibp"].attributes
    with pytest.MonkeyPatch.context() as again:
        again.setattr(compat, "version", lambda: "0.3")
        rows = run("ibp", engine="auto-lirpa", out=tmp_path / "a.h5")["ibp"]
    assert rows.count(Status.UNSUPPORTED) == 0, "failed rows were not tried again"
    assert "reason" not in rows.attributes, "the file still says why the method could not"


@pytest.mark.parametrize(
    ("error", "status"), [(Unsupported("no such layer"), Status.UNSUPPORTED), (Contradiction("broken"), Status.ERROR)]
)
@pytest.mark.parametrize("when", ["prepare", "batch"])
def test_a_refusal_is_recorded_with_its_reason(install: Install, error: Exception, status: Status, when: str) -> None:
    def refuse(*arguments: Any) -> Any:
        raise error

    recorder = Recorder()
    install(refuse, prepared=refuse if when == "prepare" else None)
    rows = run("fake", reporter=recorder)["fake"]
    assert_total(rows)
    assert (rows["status"][WRONG:] == status).all()
    assert (rows["status"][:WRONG] == Status.MISCLASSIFIED).all()
    assert rows.attributes["reason"] == str(error)
    assert recorder.warnings == [f"fake: {status.name}: {error}"], "said once, with method, status and reason"


def test_a_norm_that_a_method_does_not_handle(install: Install) -> None:
    fake = install(answer(Status.CERTIFIED, 0.2))
    rows = run("fake", norm="l2")["fake"]
    assert (rows["status"][WRONG:] == Status.UNSUPPORTED).all()
    assert rows.attributes["reason"] == "fake does not handle the norm l2"
    assert fake.asked == []


def test_an_error_of_the_program_is_not_hidden(install: Install) -> None:
    def crash(*arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    install(crash)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run("fake")


# Memory -----------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
]


def limited(rows: int, error: Exception, never: int = -1) -> Reply:
    """Fails for more rows than that, and for one sample always."""

    def limit(batch: Batch) -> Columns:
        if len(batch) > rows or never in batch.indices.tolist():
            raise error
        return answer(Status.CERTIFIED, 0.2)(batch)

    return limit


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_halves_the_batch_and_goes_on(install: Install, error: Exception) -> None:
    fake = install(limited(2, error))
    rows = run("fake", labels=labels_of(network(), images_of(), wrong=0))["fake"]
    assert [len(batch) for batch in fake.asked] == [8, 4, *[2] * 12], "halved until it fits, and no more tried"
    assert (rows["status"] == Status.CERTIFIED).all()
    assert_total(rows)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_a_single_row_out_of_memory_is_recorded(install: Install, error: Exception) -> None:
    install(limited(8, error, never=13))
    rows = run("fake")["fake"]
    assert_total(rows)
    assert np.flatnonzero(rows["status"] == Status.OUT_OF_MEMORY).tolist() == [13]
    assert rows.count(Status.CERTIFIED) == COUNT - WRONG - 1, "the run did not go on after the row"
    assert rows["label"][13] == labels_of(network(), images_of())[13], "the failed row misses its label"


def test_out_of_memory_while_preparing(install: Install) -> None:
    def prepare(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    install(answer(Status.CERTIFIED, 0.2), prepared=prepare)
    certificates = run("fake", "pgd", options=QUICK)
    assert (certificates["fake"]["status"][WRONG:] == Status.OUT_OF_MEMORY).all()
    assert certificates["pgd"].count(Status.OUT_OF_MEMORY) == 0, "the next method did not run"


# Contradictions ---------------------------------------------------------------------------------------------------


def test_a_lying_method_is_caught_by_a_counterexample(install: Install, tmp_path: Path) -> None:
    recorder = Recorder()
    install(answer(Status.CERTIFIED, 0.5))
    certificates = run("pgd", "fake", out=tmp_path / "a.h5", eps="1/2", options=QUICK, reporter=recorder)
    attacked = np.isfinite(certificates["pgd"]["distance"])
    assert 0 < attacked.sum() < COUNT - WRONG, "the attack finds nothing, or all: the test is of no use"
    rows = certificates["fake"]
    assert_total(rows)
    assert (rows["status"][attacked] == Status.ERROR).all(), "a radius beyond a counterexample stands"
    assert (rows["certified"][attacked] == 0).all()
    assert (rows["status"][~attacked][WRONG:] == Status.CERTIFIED).all(), "rows without a contradiction suffer"
    assert "contains a counterexample" in rows.attributes["reason"]
    assert any("fake: ERROR" in text for text in recorder.warnings)


def test_a_radius_as_long_as_the_counterexample_is_a_contradiction(install: Install) -> None:
    distance = run("pgd", eps="1/2", options=QUICK)["pgd"]["distance"]
    row = int(np.nanargmin(distance))
    for claim, status in ((distance[row], Status.ERROR), (np.nextafter(distance[row], 0), Status.CERTIFIED)):
        install(answer(Status.CERTIFIED, float(claim)))
        found = run("pgd", "fake", eps="1/2", options=QUICK)["fake"]["status"][row]
        assert found == status, f"radius {claim} against a counterexample at {distance[row]}"


def test_probabilistic_radii_are_not_contradicted(install: Install) -> None:
    install(answer(Status.CERTIFIED, 0.5), worth=Guarantee.PROBABILISTIC)
    rows = run("pgd", "fake", eps="1/2", options=QUICK)["fake"]
    assert rows.count(Status.ERROR) == 0, "a probabilistic claim may fail on some samples"


# Input that is refused --------------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """Drops pixels even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.dropout(x, 0.5, training=True))


class Flat(nn.Module):
    """Gives a table an image, not one row of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None]


def labels_with(value: int) -> Tensor:
    """Right labels, but one."""
    labels = labels_of(network(), images_of())
    labels[5] = value
    return labels


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "above one": ({"images": images_of() * 1.5}, r"must be in \[0, 1\], got values from .* to 1\.[0-9]"),
    "below zero": ({"images": images_of() - 0.1}, r"must be in \[0, 1\], got values from -0\.0"),
    "nan": ({"images": images_of() * torch.nan}, r"must be in \[0, 1\], got values from nan"),
    "whole numbers": ({"images": (images_of() * 255).long()}, "got torch.int64: divide bytes by 255"),
    "label high": ({"labels": labels_with(3)}, "labels run from 0 to 3, the network has 3 classes"),
    "label low": ({"labels": labels_with(-1)}, "labels run from -1 to [12], the network has 3 classes"),
    "too few labels": ({"labels": labels_with(0)[:20]}, "as many images as labels .* got 24 and 20"),
    "no samples": ({"images": images_of()[:0], "labels": labels_with(0)[:0]}, "at least one: got 0 and 0"),
    "no logits": ({"model": Flat()}, r"one row of logits per image, got shape \(24, 1, 4\)"),
    "one class": (
        {"model": nn.Linear(4, 1), "labels": labels_with(2)},
        "labels run from . to 2, the network has 2 classes",
    ),
    "dropout": ({"model": Dropout()}, "not one fixed function: two passes differ by .* in eval mode"),
    "float64": ({"model": network().double()}, r"must be float32, got float64: certify model\.float\(\)"),
    "method": ({"methods": ("pgdd",)}, "unknown method 'pgdd'. Did you mean 'pgd'?"),
    "far method": ({"methods": ("zonotope",)}, "unknown method 'zonotope'. Known: pgd, autoattack, ibp, crown"),
    "no name": (
        {"methods": ({"steps": 3},)},
        "a method is a name like crown, or settings with a kind, got {'steps': 3}",
    ),
    "no method": ({"methods": ()}, "no method was named"),
    "twice": ({"methods": ("pgd", "pgd")}, "each method once, got pgd, pgd"),
    "option": ({"options": {"stepz": 3}}, "the methods pgd has a setting 'stepz'. Did you mean 'steps'?"),
    "other's option": ({"options": {"tolerance": 0.1}}, "pgd has a setting 'tolerance'. It belongs to ibp, crown-ibp"),
    "zero steps": ({"options": {"steps": 0}}, "method pgd: steps must be at least 1, got 0"),
    "inf steps": ({"options": {"steps": float("inf")}}, "method pgd: steps: inf is not a whole number"),
    "norm": ({"norm": "linff"}, "norm must be 'linf', 'l2' or 'l1', got 'linff'"),
    "eps text": ({"eps": "8/0"}, "'8/0' divides by zero"),
    "eps sign": ({"eps": "-1/255"}, "eps must be positive.*, got '-1/255'"),
    "eps size": ({"eps": "8"}, r"eps 8 covers the whole image box \[0, 1\]: did you mean 8/255?"),
    "seed": ({"seed": -1}, "seed must be at least 0, got -1"),
    "half a seed": ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    "batch": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_one_clear_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as refusal:
        run(**{"methods": ("pgd",), "out": tmp_path / "a.h5", "labels": labels_with(0), **change})
    assert len(str(refusal.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "a refused call left a file"


@pytest.mark.parametrize("indices", [torch.arange(4), torch.arange(COUNT) - 1])
def test_bad_indices_are_refused(indices: Tensor) -> None:
    unchecked = object.__new__(Data)  # past the tests' shape checks
    vars(unchecked).update(images=images_of(), labels=labels_with(0), indices=indices, about={})
    with pytest.raises(InputError, match="need one index of 0 or more per label"):
        validate(network(), unchecked, Reporter())


def test_pixels_a_rounding_outside_are_clamped(install: Install) -> None:
    seen: list[Tensor] = []

    def look(batch: Batch) -> Columns:
        seen.append(batch.x)
        return answer(Status.NOT_CERTIFIED)(batch)

    install(look)
    images = images_of()
    images[5, 0], images[5, 1] = -3e-8, 1 + 3e-8
    run("fake", images=images, labels=labels_of(network(), images.clamp(0, 1)))
    assert float(torch.cat(seen).min()) >= 0.0
    assert float(torch.cat(seen).max()) <= 1.0


# What is left as it was -------------------------------------------------------------------------------------------


class Trained(nn.Module):
    """Batch norm and dropout, some parts in training mode, some frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.inner = nn.BatchNorm1d(4), nn.Dropout(0.5), network()
        self.train()
        self.norm.eval()
        self.inner[0].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.drop(self.norm(x)))


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a network that a certification could change."""
    return {
        "training": [module.training for module in model.modules()],
        "weights": weights_sha256(model),
        "dtypes": [tensor.dtype for tensor in model.state_dict().values()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad for parameter in model.parameters()],
        "modules": [name for name, _ in model.named_modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def test_the_images_are_left_as_they_were() -> None:
    images = images_of()
    run("pgd", "ibp", images=images, options=QUICK)
    assert torch.equal(images, images_of())


def test_the_network_is_restored_after_a_crash(install: Install) -> None:
    def crash(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    install(crash)
    model = Trained()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        run("fake", model=model, labels=labels_with(0))
    assert state_of(model) == before


def flags() -> tuple[Any, ...]:
    """Arithmetic settings of torch."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    return matmul, cudnn, deterministic, torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.fixture
def arithmetic() -> Iterator[Callable[[bool, int], None]]:
    """Sets TF32 and determinism; both are put back afterwards."""
    before = (*flags()[:2], torch.get_deterministic_debug_mode())

    def use(tf32: bool, deterministic: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.set_deterministic_debug_mode(deterministic)

    yield use
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_deterministic_debug_mode(before[2])


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("deterministic", [0, 1, 2])
@pytest.mark.parametrize("crash", [True, False])
@pytest.mark.thin(2)
def test_arithmetic_is_trusted_inside_and_restored(
    install: Install, arithmetic: Callable[[bool, int], None], tf32: bool, deterministic: int, crash: bool
) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(batch: Batch) -> Columns:
        seen.append(flags())
        if crash:
            raise ZeroDivisionError
        return answer(Status.NOT_CERTIFIED)(batch)

    install(look)
    arithmetic(tf32, deterministic)
    before = flags()
    if crash:
        with pytest.raises(ZeroDivisionError):
            run("fake")
    else:
        run("fake")
    assert set(seen) == {(False, False, True, True)}, "TF32 is on, or deterministic algorithms off, while certifying"
    assert flags() == before, "torch's settings were not put back"


def test_every_module_is_in_eval_mode_inside(install: Install) -> None:
    model, seen = Trained(), []

    def look(batch: Batch) -> Columns:
        seen.extend(module.training for module in model.modules())
        return answer(Status.NOT_CERTIFIED)(batch)

    install(look)
    run("fake", model=model, labels=labels_with(0))
    assert seen, "the method was not asked"
    assert not any(seen), "a part of the network was in training mode"


# Equal answers ----------------------------------------------------------------------------------------------------

NAMES = ("pgd", "ibp", "crown")


@pytest.fixture(scope="module")
def whole() -> Certificates:
    """All methods on all samples, each with its own batch size."""
    return run(*NAMES, options=QUICK)


def test_images_of_rows_without_a_counterexample_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    stored = []
    for batch_size in (1, 24):
        rows = run("pgd", out=tmp_path / f"{batch_size}.h5", options=QUICK, batch_size=batch_size)["pgd"]
        assert rows.count(Status.FALSIFIED) > 0
        without = np.flatnonzero(rows["status"] != Status.FALSIFIED)
        stored.append(reader.read_images(tmp_path / f"{batch_size}.h5", "pgd", "counterexample", without))
    assert np.array_equal(*stored), "a misclassified row looks different when it is alone in its batch"


def test_counterexamples_are_wrong_and_inside_the_ball(tmp_path: Path) -> None:
    rows = run("pgd", out=tmp_path / "a.h5", options=QUICK)["pgd"]
    fooled = np.flatnonzero(rows["status"] == Status.FALSIFIED)
    points = torch.from_numpy(reader.read_images(tmp_path / "a.h5", "pgd", "counterexample", fooled))
    with torch.no_grad():
        assert (network()(points).argmax(1).numpy() != rows["predicted"][fooled]).all(), "not a counterexample"
    distance = (points.double() - images_of()[fooled].double()).abs().amax(1).numpy()
    np.testing.assert_array_equal(distance, rows["distance"][fooled])
    assert (distance <= rows.eps).all(), "a counterexample outside of the ball"


def test_memory_and_file_hold_the_same(whole: Certificates, tmp_path: Path) -> None:
    in_memory, in_file = whole, run(*NAMES, options=QUICK, out=tmp_path / "a.h5")
    equal_but_seconds(in_memory, in_file, NAMES)
    equal_but_seconds(in_file, reader.read(tmp_path / "a.h5"), NAMES)
    assert list(reader.read(tmp_path / "a.h5").methods) == list(NAMES), "methods come in another order than asked"
    for name in NAMES:
        assert in_memory[name].attributes == in_file[name].attributes
    changing = {"started"}
    differ = {key for key in in_file.attributes if str(in_file.attributes[key]) != str(in_memory.attributes[key])}
    assert differ <= changing, f"attributes differ: {differ - changing}"


class Lazy:
    """Images that are made when they are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, indices: Tensor) -> Tensor:
        self.asked.append(len(indices))
        return images_of()[indices]


def test_lazy_images_equal_a_tensor() -> None:
    lazy = Lazy()
    certificates = certify(
        network(), lazy, labels_of(network(), images_of()), eps=EPS, methods=("pgd",), options=QUICK, batch_size=5
    )
    tensor = run("pgd", options=QUICK, batch_size=5)
    equal_but_seconds(certificates, tensor, ["pgd"])
    assert certificates.attributes["data_sha256"] == tensor.attributes["data_sha256"]
    assert 5 in lazy.asked, "the batches were not read from the object"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples(whole: Certificates, count: int) -> None:
    images = images_of()[5 : 5 + count]
    few = run("pgd", "crown", images=images, labels=labels_of(network(), images, wrong=0), options=QUICK)
    np.testing.assert_allclose(few["crown"]["radius"], whole["crown"]["radius"][5 : 5 + count], rtol=0.005)
    assert len(few["pgd"]) == count


def test_a_method_gets_the_index_of_each_sample(install: Install) -> None:
    """Randomness is keyed by it, so that a part of the samples gets the same answers as the whole."""
    fake, part = install(answer(Status.CERTIFIED, 0.2)), torch.tensor([20, 4, 11])
    images = images_of()[part]
    rows = run("fake", images=images, labels=labels_of(network(), images, wrong=0), indices=part)["fake"]
    assert fake.samples == part.tolist()
    assert rows["index"].tolist() == part.tolist()


def test_seconds_are_positive_where_the_method_was_asked(whole: Certificates) -> None:
    for rows in whole.methods.values():
        assert (rows["seconds"][:WRONG] == 0).all(), "a misclassified row takes no time"
        assert np.isfinite(rows["seconds"]).all() and (rows["seconds"][WRONG:] > 0).all()


# Going on with a file ---------------------------------------------------------------------------------------------


def tanh_network() -> nn.Module:
    """The same weights as ``network`` with another activation."""
    model = network()
    model[1] = nn.Tanh()
    return model


class Scaled(nn.Module):
    """A normalisation that no state dict holds."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": network(1)}, "model_sha256"),
        ({"model": tanh_network()}, "program_sha256"),
        ({"eps": "1/21"}, "eps"),
        ({"norm": "l2"}, "norm"),
        ({"seed": 1}, "seed"),
        ({"options": {"steps": 6, "restarts": 2}}, "settings"),
        ({"methods": ("pgd", "ibp")}, "settings"),
        ({"images": images_of().flip(0)}, "data_sha256"),
        ({"indices": torch.arange(COUNT) + 1}, "indices_sha256"),
        ({"about": {"split": "test"}}, "split"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.thin(2)
def test_another_certification_on_the_same_file_is_refused(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    same: dict[str, Any] = {"methods": ("pgd",), "out": tmp_path / "a.h5", "labels": labels_with(0), "options": QUICK}
    run(**same)
    with pytest.raises(InputError, match=f"made with another {key} "):
        run(**{**same, **change})


def test_a_normalisation_that_is_not_saved_is_part_of_the_network(tmp_path: Path) -> None:
    run("pgd", model=Scaled(1.0), out=tmp_path / "a.h5", options=QUICK)
    with pytest.raises(InputError, match="made with another program_sha256"):
        run("pgd", model=Scaled(0.5), out=tmp_path / "a.h5", options=QUICK)


def test_a_finished_file_is_not_worked_on(install: Install, tmp_path: Path) -> None:
    fake = install(answer(Status.CERTIFIED, 0.01))
    first = run("fake", out=tmp_path / "a.h5")
    asked = len(fake.asked)
    second = run("fake", out=tmp_path / "a.h5")
    assert len(fake.asked) == asked, "finished rows were certified again"
    equal_but_seconds(first, second, ["fake"])


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_tried_again_and_only_they(install: Install, tmp_path: Path, failure: Status) -> None:
    def some(batch: Batch) -> Columns:
        columns = answer(Status.CERTIFIED, 0.01)(batch)
        columns["status"][np.isin(batch.indices.numpy(), [4, 9])] = failure
        return columns

    install(some)
    assert run("fake", out=tmp_path / "a.h5")["fake"].count(failure) == 2
    fake = install(answer(Status.CERTIFIED, 0.01))
    rows = run("fake", out=tmp_path / "a.h5")["fake"]
    assert fake.samples == [4, 9]
    assert rows.count(Status.CERTIFIED) == COUNT - WRONG


# Fingerprints -----------------------------------------------------------------------------------------------------


def data_sha256(images: Tensor, labels: Tensor, batch: int = 24) -> str:
    """The fingerprint, fed in batches."""
    fingerprint = DataFingerprint()
    for part in torch.arange(len(images)).split(batch):
        fingerprint.update(images[part], labels[part])
    return fingerprint.hexdigest()


def test_the_data_fingerprint_sees_one_pixel_one_label_and_the_order() -> None:
    images, labels = images_of(), labels_with(0)
    original = data_sha256(images, labels)
    pixel, label = images.clone(), labels.clone()
    pixel[17, 2] = torch.nextafter(pixel[17, 2], torch.tensor(1.0))
    label[17] = (label[17] + 1) % 3
    others = [data_sha256(pixel, labels), data_sha256(images, label), data_sha256(images.flip(0), labels.flip(0))]
    assert len({original, *others}) == 4
    assert {data_sha256(images, labels, batch) for batch in (1, 5, 24)} == {original}, "it depends on the batches"
    assert data_sha256(images.double(), labels) == original, "it depends on the dtype they are stored in"


def test_the_data_fingerprint_is_in_the_file() -> None:
    images = images_of()
    expected = data_sha256(images, labels_of(network(), images))
    assert run("pgd", options=QUICK).attributes["data_sha256"] == expected


def test_the_weight_fingerprint_by_its_definition() -> None:
    weight = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"b|int64|()|" + b"\x07" + bytes(7) + b"w|float32|(1, 2)|" + weight.numpy().tobytes())
    assert weights_sha256({"w": weight, "b": torch.tensor(7)}) == expected.hexdigest()


def test_the_weight_fingerprint_depends_on_the_values_alone() -> None:
    model = network()
    state = model.state_dict()
    original = weights_sha256(model)
    assert weights_sha256(state) == original, "a module and its state dict differ"
    assert weights_sha256(dict(reversed(state.items()))) == original, "it depends on the order"
    transposed = {name: value.t().contiguous().t() if value.dim() == 2 else value for name, value in state.items()}
    assert weights_sha256(transposed) == original, "it depends on the memory layout"
    assert weights_sha256(tanh_network()) == original


@pytest.mark.parametrize("change", ["weight", "name", "dtype", "shape", "sign of zero", "missing"])
def test_the_weight_fingerprint_sees_every_change(change: str) -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    original = weights_sha256(state)
    changed = {
        "weight": {**state, "b": torch.tensor([1, 1, 1, 1 + 1e-6])},
        "name": {"a": state["a"], "c": state["b"]},
        "dtype": {**state, "b": state["b"].double()},
        "shape": {**state, "a": torch.zeros(3, 2)},
        "sign of zero": {**state, "a": -state["a"]},
        "missing": {"a": state["a"]},
    }[change]
    assert weights_sha256(changed) != original


def test_the_structure_fingerprint_sees_what_a_state_dict_leaves_out() -> None:
    networks = [network(), tanh_network(), Scaled(1.0), Scaled(0.5)]
    assert len({structure_sha256(model) for model in networks}) == 4
    assert structure_sha256(network(0)) == structure_sha256(network(1)), "weights have a fingerprint of their own"
    assert structure_sha256(network().train()) == structure_sha256(network().eval())


# Progress and warnings --------------------------------------------------------------------------------------------


def test_the_reporter_hears_everything_in_order(install: Install, tmp_path: Path) -> None:
    recorder = Recorder()
    install(answer(Status.CERTIFIED, 1e-5))
    run("pgd", "fake", out=tmp_path / "a.h5", options=QUICK, batch_size=10, reporter=recorder)
    steps = [("advance", rows) for rows in (10, 10, 4)]
    assert recorder.calls == [
        ("clean", (COUNT - WRONG) / COUNT, COUNT),
        *[("start", "pgd", COUNT, 0), *steps, ("finish", "pgd")],
        *[("start", "fake", COUNT, 0), *steps, ("finish", "fake")],
    ]
    again = Recorder()
    run("pgd", "fake", out=tmp_path / "a.h5", options=QUICK, batch_size=10, reporter=again)
    assert again.calls[1:] == [
        *[("start", "pgd", COUNT, COUNT), ("finish", "pgd")],
        *[("start", "fake", COUNT, COUNT), ("finish", "fake")],
    ], "a finished file must say that all is done"


def test_near_chance_is_warned_about() -> None:
    recorder = Recorder()
    wrong = (labels_of(network(), images_of(), wrong=0) + torch.arange(COUNT) % 3) % 3
    run("pgd", labels=wrong, options=QUICK, reporter=recorder)
    assert recorder.warnings == ["clean accuracy 33.3% is near chance for 3 classes: are these the right weights?"], (
        recorder.calls
    )
    good = Recorder()
    run("pgd", options=QUICK, reporter=good)
    assert good.warnings == [], "a good network is warned about"


def test_methods_are_found_by_name() -> None:
    assert [methods.find(kind) for kind in methods.BY_KIND] == list(methods.METHODS), "two methods share a name"


def test_what_is_no_network_and_no_configuration_is_refused() -> None:
    config = CertifyConfig(eps="0.1")
    for arguments, words in (
        (("net.pt", config, None), "the network must be a torch.nn.Module, got str"),
        ((None, config, None), "the network must be"),
        ((network(), config, "t.pt"), "the teacher must be a torch.nn.Module, got str"),
        ((network(), {"eps": 0.1}, None), "config must be a CertifyConfig, got dict"),
    ):
        with pytest.raises(InputError, match=words):
            check_types(*arguments)


def test_a_lying_method_is_caught_on_the_program_itself(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    install(answer(Status.CERTIFIED, 0.9))
    monkeypatch.setattr(answers, "refuted", refuted)
    rows = run("fake")["fake"]
    assert (rows["status"] == Status.ERROR).any() and (rows["radius"][rows["status"] == Status.ERROR] == 0).all()
    assert "contains a counterexample" in rows.attributes["reason"]


class Signs(nn.Module):
    """Logits of the signs of two linear functions: constant almost everywhere."""

    def __init__(self, *, residual: bool = False) -> None:
        super().__init__()
        self.first, self.residual = nn.Linear(4, 2), residual

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        return torch.sign(h) + h if self.residual else torch.sign(h)


@pytest.mark.parametrize(("residual", "methods", "blind"), [(False, "pgd", 1), (False, "ibp", 0), (True, "pgd", 0)])
def test_an_attack_without_a_gradient_is_said(residual: bool, methods: str, blind: int) -> None:
    torch.manual_seed(0)
    recorder, images = Recorder(), torch.rand(2, 1, 2, 2)
    settings = {"methods": (methods,), "reporter": recorder}
    certify(Signs(residual=residual).eval(), images, torch.tensor([0, 1]), eps="0.01", **settings)
    found = [text for text in recorder.warnings if text.startswith("pgd is blind: the gradient of the logits is zero")]
    assert len(found) == blind, recorder.warnings


class Shares(nn.Module):
    """A softmax in words of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        powers = self.first(x.flatten(1)).exp()
        return powers / powers.sum(1, keepdim=True)


def test_probabilities_that_are_no_last_softmax_are_said() -> None:
    torch.manual_seed(0)
    recorder, images = Recorder(), torch.rand(2, 1, 2, 2)
    certify(Shares().eval(), images, torch.tensor([0, 1]), eps="0.01", methods=("pgd",), reporter=recorder)
    assert sum("the network gives probabilities: behind a softmax" in text for text in recorder.warnings) == 1
