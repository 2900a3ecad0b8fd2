"""Noise of randomized smoothing, by name."""

from enum import StrEnum

from verifiers.core.quantities import Norm

#: The most looks at the votes of a sample, and the room for them in a file; the last look's votes fill the rest.
LOOKS = 12


class Noise(StrEnum):
    """The law of the noise, by its standard deviation sigma in each pixel."""

    GAUSSIAN = "gaussian"
    UNIFORM = "uniform"

    def certifies(self, norm: Norm) -> bool:
        """Gaussian noise gives l2 radii, and so l1 and (weak) linf ones; uniform noise gives l1 radii."""
        return self is Noise.GAUSSIAN or norm is Norm.L1
