"""Synthetic radio signals: 64 complex samples of one of six modulations under noise, as a converter would give them.

A signal has random symbols, 4 samples long, at a random phase and a random start within a symbol. The constellations of
BPSK, QPSK, 8PSK, 16QAM and 64QAM have square pulses and mean power 1. GFSK has the modulation index 1/2 and frequency
pulses through a Gaussian filter of bandwidth 0.3 symbol rates. White Gaussian noise gives a signal-to-noise ratio of
0, 6, 12 or 18 dB, and the sum is scaled to mean power 1.

A converter of 12 bits takes real and imaginary part from -4 to 4 (what is beyond is cut off), and this range is the
data's [0, 1]: x = (s + 4) / 8. So the image box of every certificate is the converter's range, and a distance in x is
an eighth of that of the signals. A signal has the length 8, the root of 64 samples of power 1: an l2 ball of radius eps
holds all disturbances whose power is at most eps^2 of the signal's. -20 dB are eps 0.1, and -26 dB are eps 0.05.

Classes and ratios take turns. Each signal depends on the seed, its split and its number alone.
"""

import numpy as np
import torch

from certkd.data.keys import key
from certkd.data.splits import SPLITS, DataSet, Split, TensorImages

MODULATIONS = ("BPSK", "QPSK", "8PSK", "16QAM", "64QAM", "GFSK")
#: Signal-to-noise ratios in dB.
RATIOS = (0, 6, 12, 18)
#: Signals of each split, multiples of the 24 kinds.
SIZES = {"train": 4800, "validation": 480, "test": 960}
LENGTH, PER_SYMBOL, FULL_SCALE, LEVELS = 64, 4, 4.0, 4095


def load(seed: int) -> DataSet:
    """Generate the data set of a seed."""
    splits = {}
    for name in SPLITS:
        images = np.stack([converted(signal(seed, name, number)) for number in range(SIZES[name])])
        labels = torch.arange(SIZES[name]) % len(MODULATIONS)
        splits[name] = Split(TensorImages(torch.from_numpy(images)), labels, torch.arange(SIZES[name]))
    return DataSet("modulations", len(MODULATIONS), (2, LENGTH), splits, names=MODULATIONS)


def signal(seed: int, split: str, number: int) -> np.ndarray:
    """Generate one noisy complex signal of mean power 1."""
    draws = np.random.default_rng(key(seed, SPLITS.index(split), number))
    modulation = MODULATIONS[number % len(MODULATIONS)]
    ratio = RATIOS[number // len(MODULATIONS) % len(RATIOS)]
    symbols = LENGTH // PER_SYMBOL + 1
    sent = _gfsk(draws, symbols) if modulation == "GFSK" else np.repeat(_points(modulation, draws, symbols), PER_SYMBOL)
    start = draws.integers(PER_SYMBOL)
    sent = sent[start : start + LENGTH] * np.exp(2j * np.pi * draws.random())
    noise = draws.standard_normal((2, LENGTH)) * np.sqrt(10 ** (-ratio / 10) / 2)
    received = sent + noise[0] + 1j * noise[1]
    return received / np.sqrt(np.mean(np.abs(received) ** 2))


def converted(received: np.ndarray) -> np.ndarray:
    """Convert a signal to real and imaginary parts in [0, 1], as multiples of 1 / 4095."""
    parts = np.stack([received.real, received.imag]).clip(-FULL_SCALE, FULL_SCALE)
    return (np.rint((parts / FULL_SCALE + 1) / 2 * LEVELS) / LEVELS).astype(np.float32)


def _points(modulation: str, draws: np.random.Generator, count: int) -> np.ndarray:
    """Draw points of a constellation of mean power 1."""
    if modulation.endswith("QAM"):
        side = int(np.sqrt(int(modulation.removesuffix("QAM"))))
        levels = (2 * draws.integers(side, size=(2, count)) - side + 1) / np.sqrt(2 * (side**2 - 1) / 3)
        return levels[0] + 1j * levels[1]
    order = {"BPSK": 2, "QPSK": 4, "8PSK": 8}[modulation]
    return np.exp(2j * np.pi * draws.integers(order, size=count) / order)


def _gfsk(draws: np.random.Generator, count: int) -> np.ndarray:
    """Draw a phase whose frequency is filtered bits: a quarter turn over each bit."""
    bits = np.repeat(2.0 * draws.integers(2, size=count) - 1, PER_SYMBOL)
    times = np.arange(-2 * PER_SYMBOL, 2 * PER_SYMBOL + 1) / PER_SYMBOL
    pulse = np.exp(-2 * (np.pi * 0.3 * times) ** 2 / np.log(2))
    filtered = np.convolve(bits, pulse / pulse.sum(), mode="same")
    return np.exp(0.5j * np.pi * np.cumsum(filtered) / PER_SYMBOL)
