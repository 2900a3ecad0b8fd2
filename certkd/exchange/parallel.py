"""Solve a list of instances in several processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from certkd.exchange.instance_table import Instance, Row
from certkd.exchange.solving import Networks, Settings, solve_or_say
from verifiers.properties.solver import Verdict
from verifiers.runtime.modes import reuse_memory
from verifiers.runtime.pool import End, Left, Rows, Send, spread
from verifiers.runtime.processes import Processes


@dataclass(frozen=True)
class Solving:
    """The job: solve instances, each with the networks that are kept from earlier ones."""

    settings: Settings
    threads: int = 1

    def open(self) -> Callable[[Instance, Send], None]:
        """Return what solves an instance."""
        torch.set_num_threads(self.threads)
        reuse_memory()
        networks = Networks()
        return lambda instance, send: send(solve_or_say(instance, self.settings, networks))


@dataclass
class Table:
    """The rows of a list, in its order; ``done`` is called with those so far when there is a new one."""

    instances: Sequence[Instance]
    done: Callable[[Sequence[Row], Row], None]
    rows: dict[int, Row] = field(default_factory=dict)

    def task(self, rows: Rows) -> Instance:
        """Return the instance, which is a task by itself."""
        return self.instances[int(rows[0])]

    def take(self, rows: Rows, value: Row) -> bool:
        """Keep a row."""
        self._keep(int(rows[0]), value)
        return True

    def left(self, rows: Rows) -> Left:
        """Return the instances without a row."""
        return np.array([row for row in rows if int(row) not in self.rows], int)

    def give_up(self, row: int, end: End) -> None:
        """Record an instance that ends its process, or does not fit into memory, as unknown."""
        self._keep(row, Row(self.instances[row], Verdict.UNKNOWN, 0.0, reason=f"tried alone: {end.lost}"))

    def _keep(self, place: int, row: Row) -> None:
        self.rows[place] = row
        self.done([self.rows[number] for number in sorted(self.rows)], row)


def solve_in_processes(
    instances: Sequence[Instance], settings: Settings, workers: int, done: Callable[[Sequence[Row], Row], None]
) -> list[Row]:
    """Solve instances in processes, which share the threads that are set; return their rows in order.

    Args:
        instances: of a list.
        settings: as for one process.
        workers: number of processes.
        done: receives all rows so far, in order, and the new one.
    """
    table, threads = Table(instances, done), max(1, torch.get_num_threads() // workers)
    with Processes(Solving(settings, threads), workers, threads) as pool:
        spread(pool, table, np.arange(len(instances)), 1)
    return [table.rows[number] for number in sorted(table.rows)]
