"""Log the progress of a training as JSON lines, and to TensorBoard if it is installed."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verifiers.core.errors import InputError, one_line


class RunLog:
    """Write ``log.jsonl``, one record per epoch, and TensorBoard's event files if it is installed.

    The log starts with ``history``, the epochs already done; the log of an interrupted run is replaced.

    Raises:
        InputError: the folder cannot be written or the disk is full; finished epochs are kept.
    """

    def __init__(self, out: Path | None, history: Sequence[dict[str, Any]] = ()) -> None:
        self._path = out / "log.jsonl" if out is not None else None
        self._board: _Board | None = None
        if self._path is not None:
            with _writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text("".join(f"{json.dumps(record)}\n" for record in history))
            self._board = _tensorboard(self._path.parent / "tensorboard")

    def write(self, record: dict[str, Any]) -> None:
        """Append one epoch."""
        if self._path is not None:
            with _writing(self._path), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._board is not None:
            groups = ("terms", "validation")
            values = {f"{group}/{name}": value for group in groups for name, value in record[group].items()}
            self._board.write(values, record["epoch"])

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()


class _Board:
    """TensorBoard's event file, written at once: its own writer is a thread whose errors nobody can catch."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar

        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        with _writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab")  # noqa: SIM115 - open as long as the training
            self._records, self._event, self._scalar = RecordWriter(self._file), Event, scalar
            self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            self._file.flush()

    def write(self, values: dict[str, float], epoch: int) -> None:
        """Append the scalars of an epoch."""
        with _writing(self._path):
            for name, value in values.items():
                event = self._event(wall_time=time.time(), step=epoch, summary=self._scalar(name, value))
                self._records.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with _writing(self._path):
            self._file.close()


def _tensorboard(folder: Path) -> _Board | None:
    try:
        return _Board(folder)
    except ImportError:
        return None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or one_line(error)}; finished epochs are kept: free some space or "
            "mend the folder, then resume the training"
        ) from None
