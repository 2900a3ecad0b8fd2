"""Randomized smoothing: noisy copies a second, copies needed for one radius, and memory.

Copies a second on CIFAR shapes: certkd against the plain forward on noise that is ready, against the classic loop (one
image at a time, batches of 1000, as locuslab/smoothing has it) and, where it is installed, against ART as shipped. The
same network in float32, one thread for the arithmetic, runs that take turns. Then, on digits and a network trained
under noise, the copies that one radius takes against all n. Memory is the most that a fresh process grows by.

    uv run python bench/smoothing.py [--copies 4096] [--runs 5] [--n 100000] [--samples 100]
"""

import argparse
import subprocess
import sys

import numpy as np
import torch
from nets import case
from timing import alternate, report
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.networks.resolve import randomly_initialised
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.memory import reuse_memory
from verifiers.methods.smoothing import Smoothing
from verifiers.results.rows import MethodRows
from verifiers.smoothing.sampling import FORWARD, Draw, Purpose, Voter
from verifiers.smoothing.statistics import Noise

SIGMA = 0.25


def network(name: str) -> nn.Module:
    """A convolutional network of 10 MMAC or a ResNet-20, random weights, CIFAR shape."""
    torch.manual_seed(0)
    if name == "resnet20":
        return randomly_initialised("certkd:resnet,depth=20", 10, (3, 32, 32)).eval()
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 32 * 32, 10)).eval()


def classic(model: nn.Module, x: Tensor, copies: int, batch: int = 1000) -> np.ndarray:
    """The published loop: counts of one image, noise and votes batch by batch."""
    counts = np.zeros(10, int)
    with torch.no_grad():
        while copies > 0:
            size = min(copies, batch)
            copies -= size
            repeated = x.repeat((size, 1, 1, 1))
            for label in model(repeated + torch.randn_like(repeated) * SIGMA).argmax(1).cpu().numpy():
                counts[label] += 1
    return counts


def throughput(name: str, copies: int, runs: int) -> None:
    """Seconds for so many noisy copies of one image, each way."""
    model, x = network(name), torch.rand(1, 3, 32, 32)
    voter, draws = Voter(model, Noise.GAUSSIAN, SIGMA, 0), [Draw(0, 0, 0, copies)]
    ready = torch.randn(FORWARD["cpu"], 3, 32, 32)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(-(-copies // len(ready))):
                model(ready)

    ways = {
        "plain forward, noise ready": plain,
        "certkd": lambda: voter.histogram(x, draws, Purpose.ESTIMATION, 10),
        "classic loop, batches of 1000": lambda: classic(model, x, copies),
    }
    ways |= _art(model, x, copies)
    report(f"{name}: {copies} copies of one image", alternate(ways, runs), "certkd")


def _art(model: nn.Module, x: Tensor, copies: int) -> dict[str, object]:
    try:
        from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
    except ImportError:
        return {}
    smooth = PyTorchRandomizedSmoothing(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, scale=SIGMA, device_type="cpu"
    )
    return {"ART, batches of 32": lambda: smooth._prediction_counts(x[0].numpy(), n=copies, batch_size=32)}


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """The bench's CNN, trained on under noise."""
    known = case("cnn", epochs=0)
    model = known.network.requires_grad_(True)
    torch.manual_seed(0)
    from sklearn.datasets import load_digits

    data = load_digits()
    images = F.interpolate(torch.tensor(data.images / 16).float()[:, None], (28, 28), mode="bilinear")[:1400]
    labels = torch.tensor(data.target)[:1400]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows] + 0.5 * torch.randn_like(images[rows])), labels[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False), known.images, known.labels


def copies_needed(n: int, samples: int) -> None:
    """One radius against all n, by the copies drawn and the certified accuracy."""
    model, images, labels = trained()
    data = images[:samples], labels[:samples]

    def votes(eps: float, question: str) -> MethodRows:
        method = Smoothing(sigma=0.5, n=n, question=question)
        return certify(model, data, CertifyConfig(eps=eps, norm="l2", methods=(method,)))["smoothing"]

    full = votes(1.0, "full")
    for eps in (0.25, 0.5, 0.75, 1.0):
        rows = votes(eps, "eps")
        shares = [100 * float((r["radius"] >= eps).mean()) for r in (full, rows)]
        print(
            f"  radius {eps}: {rows['used'].mean():9.0f} copies a sample, {n / rows['used'].mean():5.1f} times fewer; "
            f"certified accuracy {shares[0]:.1f} % with all {n}, {shares[1]:.1f} % here",
            flush=True,
        )


def memory(copies: int) -> None:
    """How much a fresh process grows by, certkd and the plain forward."""
    for way in ("certkd", "plain"):
        command = [sys.executable, __file__, "--probe", way, "--copies", str(copies)]
        print(f"  {way}: {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()} MB more")


def probe(way: str, copies: int) -> None:
    """Prints the growth of this process's largest resident size."""
    import resource

    model, x = network("resnet20"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        model(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "certkd":
        Voter(model, Noise.GAUSSIAN, SIGMA, 0).histogram(x, [Draw(0, 0, 0, copies)], Purpose.ESTIMATION, 10)
    else:
        with torch.no_grad():
            model(torch.rand(FORWARD["cpu"], 3, 32, 32))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def main() -> None:
    """Everything in turn."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--copies", type=int, default=4096)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--n", type=int, default=100_000)
    arguments.add_argument("--samples", type=int, default=100)
    arguments.add_argument("--reuse-memory", action="store_true", help="every way keeps freed memory, as certkd's CLI")
    arguments.add_argument("--throughput-only", action="store_true")
    arguments.add_argument("--probe", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.reuse_memory:
        reuse_memory()
    if chosen.probe:
        probe(chosen.probe, chosen.copies)
        return
    for name in ("cnn", "resnet20"):
        throughput(name, chosen.copies, chosen.runs)
    if chosen.throughput_only:
        return
    print("memory of ResNet-20 on CIFAR shapes, 20,000 copies:")
    memory(20_000)
    print(f"digits, CNN trained under noise, sigma 0.5, {chosen.samples} samples:")
    copies_needed(chosen.n, chosen.samples)


if __name__ == "__main__":
    main()
