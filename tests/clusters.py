"""Dask workers without processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def in_threads(workers: int) -> Iterator[Client]:
    """Begin workers in threads of this process, which take tasks as processes would."""
    settings = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0", "protocol": "tcp"}
    with LocalCluster(n_workers=workers, **settings) as own, Client(own, set_as_default=False) as made:
        made.wait_for_workers(workers)
        yield made
