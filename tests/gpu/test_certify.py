"""Certificates that a GPU computes against those of the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from certkd.networks import checkpoint
from tests.certifying import certify
from tests.paths import ROOT
from tests.zoo import Residual
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.results.rows import Certificates
from verifiers.runtime.modes import trusted_arithmetic

NETWORKS = ROOT / "artifacts/reference/digits"
#: Each method with its norm, eps and options. What it draws, it draws on the CPU.
METHODS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "pgd": ("linf", 0.1, {"steps": 10}),
    "autoattack": ("linf", 0.1, {"steps": 5, "queries": 20}),
    "ibp": ("linf", 0.02, {}),
    "crown-ibp": ("linf", 0.05, {}),
    "crown": ("linf", 0.05, {}),
    "alpha-crown": ("linf", 0.05, {"iterations": 5}),
    "sdp-crown": ("l2", 0.2, {}),
    "complete": ("linf", 0.1, {"time_limit": 60}),
    "lipschitz": ("l2", 0.1, {}),
    "local-linearity": ("linf", 0.02, {"steps": 5}),
    "diagnostics": ("linf", 0.02, {"steps": 5}),
    "smoothing": ("l2", 0.1, {"sigma": 0.2, "n": 2000, "n0": 50}),
    "joint": ("linf", 0.02, {}),
    "transfer": ("linf", 0.02, {}),
    "match": ("linf", 0.02, {"time_limit": 60}),
}
PAIRS = ("joint", "transfer", "match", "diagnostics")
ATTACKS = ("pgd", "autoattack", "diagnostics")


def digits(count: int) -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images[-count:] / 16).float().unsqueeze(1)
    return images, torch.tensor(data.target[-count:])


def network(name: str, place: torch.device | str) -> nn.Module:
    return checkpoint.load(NETWORKS / f"{name}.pt").model.eval().to(place)


def certified(kind: str, place: torch.device | str, count: int = 12, **more: Any) -> Certificates:
    norm, eps, options = METHODS[kind]
    teacher = {"teacher": network("teacher", place)} if kind in PAIRS else {}
    images, labels = digits(count)
    student = network("kdiga", place)
    return certify(student, images, labels, eps=eps, norm=norm, methods=(kind,), options=options, **teacher, **more)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_gives_the_answers_of_the_cpu(kind: str, place: torch.device) -> None:
    here, there = (certified(kind, where).methods[kind] for where in ("cpu", place))
    if kind in ATTACKS:  # they follow signs of gradients, which rounding may turn
        broken = [(rows["status"] == Status.FALSIFIED.value).sum() for rows in (here, there)]
        assert abs(int(broken[0]) - int(broken[1])) <= 1
        return
    assert here["status"].tolist() == there["status"].tolist()
    tolerance = 0.15 if kind == "smoothing" else 2e-3  # searches of radii stop within this share
    assert np.allclose(here["radius"], there["radius"], rtol=tolerance, atol=1e-6)
    assert (here["radius"] > 0).any() or kind in ("complete", "match")


def test_no_point_of_a_proved_ball_breaks_it_on_the_gpu(place: torch.device) -> None:
    radius = certified("crown", place, 30).methods["crown"]["radius"]
    images, _ = digits(30)
    model, draws = network("kdiga", place), torch.Generator().manual_seed(0)
    before = model(images.to(place)).argmax(1)
    for _ in range(50):
        noise = torch.rand(images.shape, generator=draws).mul(2).sub(1).sign()
        moved = (images + noise * torch.tensor(radius).float().reshape(-1, 1, 1, 1) * (1 - 1e-6)).clamp(0, 1)
        assert torch.equal(model(moved.to(place)).argmax(1)[radius > 0], before[radius > 0])


class Impatient(Reporter):
    """Stops a run after its first rows."""

    def advance(self, rows: int) -> None:
        raise KeyboardInterrupt


def test_a_file_that_the_cpu_began_is_finished_on_the_gpu(place: torch.device, tmp_path: Path) -> None:
    out, whole = tmp_path / "c.h5", certified("crown", place).methods["crown"]
    with pytest.raises(KeyboardInterrupt):
        certified("crown", "cpu", batch_size=4, out=out, reporter=Impatient())
    again = certified("crown", place, batch_size=4, out=out).methods["crown"]
    assert again["status"].tolist() == whole["status"].tolist()
    assert np.allclose(again["radius"], whole["radius"], rtol=2e-3)


@pytest.fixture
def fast_but_coarse(cuda: torch.device) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("fast_but_coarse")
def test_proofs_never_use_tf32(cuda: torch.device) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 3).to(cuda)
    x = torch.rand(4, 3, 32, 32, device=cuda)
    with trusted_arithmetic():
        exact = (layer(x) - layer.double()(x.double())).abs().max()
    assert float(exact) < 1e-5
    assert torch.backends.cudnn.allow_tf32, "the setting is restored"


def test_a_batch_that_does_not_fit_is_halved(cuda: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Residual(16), nn.Flatten(), nn.Linear(16384, 10))
    images = torch.rand(16, 3, 32, 32)
    labels = model(images).argmax(1)
    usual = certify(model.eval().to(cuda), images, labels, eps="1/255", methods=("crown-ibp",), batch_size=16)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(cuda)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 2**30) / total), cuda)
    try:
        small = certify(model, images, labels, eps="1/255", methods=("crown-ibp",), batch_size=16)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert np.allclose(usual.methods["crown-ibp"]["radius"], small.methods["crown-ibp"]["radius"], rtol=2e-3)
