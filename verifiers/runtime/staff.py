"""Open a pool of workers by what the user writes: a number of processes, or a Dask cluster."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from verifiers.core.errors import InputError, one_line, quoted
from verifiers.runtime.pool import Job, Pool
from verifiers.runtime.processes import Processes

if TYPE_CHECKING:
    from distributed import Client

FORMS = "local, local:4, tcp://host:8786 or slurm:FILE.yaml"
#: Seconds in which a running scheduler answers and has a worker.
PATIENCE = 30


@dataclass(frozen=True)
class Staff:
    """Who does the work.

    Attributes:
        workers: processes on this machine; 1 is this process alone.
        cluster: a Dask cluster instead: see ``FORMS``.
    """

    workers: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.cluster is None:
            return
        if self.workers > 1:
            raise InputError(f"--workers {self.workers} and --cluster {self.cluster} exclude each other: give one")
        kind, _, rest = self.cluster.partition(":")
        fits = {"local": _whole(rest), "slurm": bool(rest), "tcp": rest.startswith("//"), "tls": rest.startswith("//")}
        if not fits.get(kind, False):
            raise InputError(f"cluster must be {FORMS}, got {quoted(self.cluster)}")
        if kind == "slurm" and not Path(rest).is_file():
            raise InputError(f"there is no file {quoted(rest)}: slurm:FILE.yaml has cores, memory, queue and jobs")

    @property
    def alone(self) -> bool:
        """True if this process does all by itself."""
        return self.workers == 1 and self.cluster is None

    @contextmanager
    def pool(self, job: Callable[[int], Job]) -> Iterator[Pool]:
        """Open a job, which is built for a number of threads, at all workers.

        Raises:
            InputError: there is no cluster, it has other code, or the job cannot be sent.
        """
        if self.cluster is None:
            threads = max(1, torch.get_num_threads() // self.workers)
            with Processes(job(threads), self.workers, threads) as processes:
                yield processes
            return
        with ExitStack() as stack:
            client = stack.enter_context(_client(self.cluster))
            from verifiers.runtime.cluster import Cluster

            yield stack.enter_context(Cluster(job(max(1, min(client.nthreads().values()))), client))


def _whole(text: str) -> bool:
    return not text or (text.isdecimal() and text.isascii() and 1 <= int(text) <= 1024)


@contextmanager
def _client(cluster: str) -> Iterator["Client"]:
    """Connect to a cluster that has a worker; what is begun here ends here."""
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise InputError(f"--cluster {cluster} needs Dask: install certkd[cluster], or use --workers N") from error
    kind, _, rest = cluster.partition(":")
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.logging.distributed": "critical"}))  # of workers
        log = logging.getLogger("distributed")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)  # what is lost is told in our own lines
        where: Any = cluster
        if kind == "local":
            where = stack.enter_context(_local(int(rest or os.cpu_count() or 1)))
        if kind == "slurm":
            where = stack.enter_context(_slurm(rest))
        with _said(cluster):
            client = stack.enter_context(Client(where, timeout=PATIENCE, set_as_default=False))
            client.wait_for_workers(1, timeout=None if kind == "slurm" else PATIENCE)
        yield client


@contextmanager
def _said(cluster: str) -> Iterator[None]:
    """Say in one line that a cluster does not answer."""
    try:
        yield
    except TimeoutError as error:
        raise InputError(f"no worker answers at {cluster} within {PATIENCE} s: start dask workers there") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"there is no cluster at {cluster} ({one_line(error)}): start dask scheduler") from error


def _local(workers: int) -> Any:
    """Begin processes on this machine, which share the threads that are set.

    Raises:
        InputError: one ends before it works.
    """
    from distributed import LocalCluster

    threads = max(1, torch.get_num_threads() // workers)
    settings: dict[str, Any] = {"threads_per_worker": threads, "dashboard_address": ":0", "silence_logs": "ERROR"}
    try:
        return LocalCluster(n_workers=workers, **settings)
    except (RuntimeError, OSError, TimeoutError) as error:
        raise InputError(f"the {workers} workers did not start ({one_line(error)}): give the command again") from error


def _slurm(place: str) -> Any:
    """Begin jobs of SLURM: the file has what ``dask_jobqueue.SLURMCluster`` takes, and the number of jobs."""
    from dask.config import collect_yaml

    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(f"slurm:{place} needs dask-jobqueue: install certkd[cluster]") from error
    try:
        settings = dict(*collect_yaml([place]))
        jobs = int(settings.pop("jobs", 1))
        cluster = SLURMCluster(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} does not describe a SLURMCluster of Dask ({one_line(error)}): correct it") from error
    cluster.scale(jobs=jobs)
    return cluster
