"""Sigmoid and tanh networks on MNIST: the share that CROWN certifies and the share that complete decides.

Trains 784-3x100-10 with each activation for a few epochs. Limits are CPU seconds, so that other work on the machine
does not count.

    uv run python bench/curved.py [--eps 0.012] [--images 20] [--time-limit 10] [--epochs 5]
"""

import argparse
import time
from collections.abc import Callable

import torch
from timing import machine
from torch import nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.data.splits import Split
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.status import Status
from verifiers.methods.complete import Complete
from verifiers.methods.crown import Crown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def trained(activation: Callable[[], nn.Module], train: Split, epochs: int) -> nn.Module:
    """A network trained by Adam on the cross-entropy."""
    torch.manual_seed(0)
    hidden = [layer for i in range(3) for layer in (nn.Linear(784 if i == 0 else 100, 100), activation())]
    network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))
    rows = torch.arange(len(train))
    images, labels = train.images[rows], train.labels[rows]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(256):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("eps", "0.012"), ("images", 20), ("time-limit", 10.0), ("epochs", 5)):
        arguments.add_argument(f"--{name}", type=type(default), default=default)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time
    known = data.load(DataConfig(name="mnist"))
    test = known.splits["test"].take(torch.arange(given.images))
    print(machine(), end="\n\n")
    print("| activation | images | CROWN certifies | complete certifies | falsifies | open | CPU s |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, activation in ACTIVATIONS.items():
        network = trained(activation, known.splits["train"], given.epochs)
        started = time.process_time()
        methods = (Crown(engine="native"), Complete(engine="native", time_limit=given.time_limit))
        config = CertifyConfig(eps=given.eps, methods=methods)
        found = certify(network, (test.images, test.labels), config)
        crown, complete = found["crown"], found["complete"]
        counts = [complete.count(status) for status in (Status.CERTIFIED, Status.FALSIFIED)]
        left = sum(complete.count(status) for status in (Status.TIMEOUT, Status.NOT_CERTIFIED))
        spent = time.process_time() - started
        proved = crown["radius"] >= float(given.eps)
        assert not (proved & (complete["status"] == Status.FALSIFIED)).any(), "proved and falsified"
        print(f"| {name} | {given.images} | {int(proved.sum())} | {counts[0]} | {counts[1]} | {left} | {spent:.0f} |")


if __name__ == "__main__":
    main()
