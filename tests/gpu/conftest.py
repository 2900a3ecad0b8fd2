"""Tests of a GPU: skipped where there is none. CERTKD_TEST_DEVICE=cpu runs them on the CPU, to test themselves."""

import os
from pathlib import Path

import pytest
import torch

NAME = os.environ.get("CERTKD_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def place() -> torch.device:
    """The device that is compared with the CPU."""
    if NAME.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device; CERTKD_TEST_DEVICE=cpu runs the test on the CPU")
    return torch.device(NAME)


@pytest.fixture
def cuda(place: torch.device) -> torch.device:
    """The device, where it is a GPU."""
    if place.type != "cuda":
        pytest.skip("only a GPU has TF32, and memory that ends")
    return place
