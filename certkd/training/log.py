"""Log the progress of a training as JSON lines, and to TensorBoard if it is installed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class RunLog:
    """Write ``log.jsonl``, one record per epoch, and TensorBoard's event files if it is installed.

    The log starts with ``history``, the epochs already done; the log of an interrupted run is replaced.
    """

    def __init__(self, out: Path | None, history: Sequence[dict[str, Any]] = ()) -> None:
        self._path = out / "log.jsonl" if out is not None else None
        self._board: Any = None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(f"{json.dumps(record)}\n" for record in history))
            self._board = _tensorboard(self._path.parent)

    def write(self, record: dict[str, Any]) -> None:
        """Append one epoch."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for group in ("terms", "validation"):
                for name, value in record[group].items():
                    self._board.add_scalar(f"{group}/{name}", value, record["epoch"])

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
