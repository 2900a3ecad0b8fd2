"""One thread: the networks of the tests are tiny, and threads that wait for each other cost more than they bring."""

import os
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave every n-th case of a test marked ``thin(n)`` in the default suite, and make the others slow."""
    places: Counter[str] = Counter()
    for item in items:
        for mark in () if item.get_closest_marker("slow") else item.iter_markers("thin"):
            test = item.nodeid.partition("[")[0]
            if places[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            places[test] += 1
