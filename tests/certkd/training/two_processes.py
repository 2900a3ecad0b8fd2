"""What each of two processes does: run by torchrun."""

import os
import sys
from pathlib import Path

import torch

from tests.certkd.training.test_ranks import FIVE_STEPS, trained
from tests.certkd.training.test_training import Recipe, fit, plain

if __name__ == "__main__":
    what, out = sys.argv[1:]
    if what == "train":
        found = trained(FIVE_STEPS)
        if os.environ["RANK"] == "0":
            torch.save(found, out)
    else:
        Path(out).mkdir(exist_ok=True)
        (Path(out) / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
        fit(plain(), recipe=Recipe(epochs=100000, batch_size=24), out=Path(out))
