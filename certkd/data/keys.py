"""Derive random numbers from what they are for: a seed, an epoch, a step, an image."""

import numpy as np
import torch


def key(*parts: int) -> int:
    """Derive a seed from all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def keyed_generator(*parts: int) -> torch.Generator:
    """Return a generator of random numbers that depends on all parts."""
    return torch.Generator().manual_seed(key(*parts))
