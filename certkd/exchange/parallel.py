"""Solve a list of instances in several processes, or on a cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from certkd.exchange.instance_table import Instance, Row
from certkd.exchange.solving import Networks, Settings, solve_or_say
from verifiers.core.memory import reuse_memory
from verifiers.properties.solver import Verdict
from verifiers.runtime.pool import End, Left, Rows, Send, spread
from verifiers.runtime.staff import Staff


@dataclass(frozen=True)
class Solving:
    """The job: solve instances, each with the networks that are kept from earlier ones."""

    settings: Settings
    threads: int = 1

    def open(self) -> Callable[[Sequence[tuple[int, Instance]], Send], None]:
        """Return what solves instances, by their places."""
        torch.set_num_threads(self.threads)
        reuse_memory()
        networks = Networks()

        def answer(instances: Sequence[tuple[int, Instance]], send: Send) -> None:
            for place, instance in instances:
                send((place, solve_or_say(instance, self.settings, networks)))

        return answer


@dataclass
class Table:
    """The rows of a list, in its order; ``done`` is called with those so far when there is a new one."""

    instances: Sequence[Instance]
    done: Callable[[Sequence[Row], Row], None]
    rows: dict[int, Row] = field(default_factory=dict)

    def task(self, rows: Rows, size: int) -> list[tuple[int, Instance]]:
        """Return instances with their places."""
        return [(int(row), self.instances[int(row)]) for row in rows]

    def take(self, rows: Rows, value: tuple[int, Row]) -> bool:
        """Keep a row."""
        self._keep(*value)
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


def solve_shared(
    instances: Sequence[Instance], settings: Settings, staff: Staff, done: Callable[[Sequence[Row], Row], None]
) -> list[Row]:
    """Solve instances in processes, which share the threads that are set; return their rows in order.

    Args:
        instances: of a list.
        settings: as for one process.
        staff: who solves them.
        done: receives all rows so far, in order, and the new one.
    """
    table = Table(instances, done)
    with staff.pool(lambda threads: Solving(settings, threads)) as pool:
        spread(pool, table, np.arange(len(instances)), 1)
    return [table.rows[number] for number in sorted(table.rows)]
