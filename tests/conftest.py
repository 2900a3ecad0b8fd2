"""One thread: the networks of the tests are tiny, and threads that wait for each other cost more than they bring."""

import os
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave every n-th case of a test marked ``thin(n)`` in the default suite, and make the others slow.

    With ``CERTKD_SLOW_EVERY=n`` every n-th slow case of each test is run.
    """
    places: Counter[str] = Counter()
    for item in items:
        for mark in () if item.get_closest_marker("slow") else item.iter_markers("thin"):
            test = item.nodeid.partition("[")[0]
            if places[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            places[test] += 1
    every, seen = int(os.environ.get("CERTKD_SLOW_EVERY", "1")), Counter[str]()
    for item in list(items) if every > 1 else []:
        if item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if (seen[test] - 1) % every:
                items.remove(item)
