"""Bound the probabilities behind a vote, and derive the radius that they certify.

Of n noisy copies of an image, k get class A. Clopper-Pearson bounds the probability of that class; the law of the
noise turns the bound into a radius. All levels are one-sided error probabilities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from verifiers.core.noise import LOOKS, Noise
from verifiers.core.quantities import Norm

#: Shortens radii by more than the error of the special functions, which is a few units of 1e-15 in p.
SLACK = 1e-12
#: Copies of the first look, the share of all copies above which no earlier look is taken, and the last look's share of
#: alpha.
FIRST, CLOSE, LAST = 60, 0.8, 0.45


def lower(k: Int[np.ndarray, "*n"], n: int, level: float) -> Float[np.ndarray, "*n"]:
    """Bound the true probability from below, except with probability ``level``; 0 at k = 0.

    Source: Clopper and Pearson, Biometrika 26, 1934. At k = n the bound is level^(1/n).
    """
    from scipy.special import betaincinv

    bound = betaincinv(np.maximum(k, 1), n - k + 1, level)
    return np.where(k == 0, 0.0, np.where(k == n, level ** (1.0 / n), bound))


def upper(k: Int[np.ndarray, "*n"], n: int, level: float) -> Float[np.ndarray, "*n"]:
    """Bound the probability from above, as 1 - lower(n - k, n), which keeps its digits near 1."""
    return np.asarray(1.0 - lower(np.asarray(n - k), n, level))


def smallest(
    enough: Callable[[Int[np.ndarray, " rows"]], Bool[np.ndarray, " rows"]], most: int, rows: int
) -> Int[np.ndarray, " rows"]:
    """Find for each row, by bisection, the smallest count below ``most`` that is enough; ``most`` if none is.

    Args:
        enough: decides on one count per row; if a count is enough, all larger ones are.
        most: the end of the search.
        rows: number of rows.
    """
    low, high = np.zeros(rows, np.int64), np.full(rows, most)
    for _ in range(most.bit_length()):
        middle = (low + high) // 2
        reached = enough(middle)
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return high


def leading(
    votes: Int[np.ndarray, "looks rows classes"], selected: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, "looks rows"], Int[np.ndarray, "looks rows"]]:
    """Return the votes for the selected class, and the most votes of any other class."""
    chosen = np.arange(votes.shape[2]) == selected[:, None]
    return np.where(chosen, votes, 0).sum(2), np.where(chosen, 0, votes).max(2)


@dataclass(frozen=True)
class Law:
    """Noise of one kind and size, and the norm of the radii.

    Attributes:
        noise: gaussian, or uniform on [-l, l] with l = sqrt(3) sigma in each pixel.
        sigma: its standard deviation, in pixel units.
        norm: norm of the ball.
        pixels: number of input values, to derive linf radii from l2 radii.
    """

    noise: Noise
    sigma: float
    norm: Norm
    pixels: int

    def radius(self, p: Float[np.ndarray, "*n"], q: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Compute the radius on which class A, of probability at least p, beats any other, of probability at most q.

        For gaussian noise it is sigma (Phi^-1(p) - Phi^-1(q)) / 2 in l2 (Cohen et al., arXiv 1902.02918), the same in
        l1, and divided by the root of the number of pixels in linf. For uniform noise it is l (p - q) (Yang et al.,
        arXiv 2002.08118). Rounded down; 0 where p <= q.
        """
        p, q = np.clip(p - SLACK, 0.0, 1.0), np.clip(q + SLACK, 0.0, 1.0)
        if self.noise is Noise.UNIFORM:
            found = 3**0.5 * self.sigma * (p - q)
        else:
            from scipy.special import ndtri

            with np.errstate(invalid="ignore"):
                found = self.sigma / 2 * (ndtri(p) - ndtri(q))
        if self.norm is Norm.LINF:
            found = found / self.pixels**0.5
        return np.where(p > q, found * (1 - SLACK), 0.0)

    def one_class(self, p: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Compute the radius from p alone: all other classes together have at most 1 - p."""
        return self.radius(p, np.asarray(1.0 - p))


@dataclass(frozen=True)
class Schedule:
    """The looks at a vote, and the share of alpha that each may spend; fixed before the first draw.

    Attributes:
        counts: cumulative numbers of noisy copies, ascending.
        levels: error probability of each look; they sum to alpha, so all bounds hold together.
    """

    counts: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def staged(cls, n: int, alpha: float) -> "Schedule":
        """Look at 60, 120, 240, ... and all n copies, at most ``LOOKS`` times, each time including the earlier ones.

        The last look spends ``LAST`` of alpha, the others share the rest equally. By the union bound all bounds hold
        together except with probability alpha, whatever decides between two looks.
        """
        counts = [FIRST * 2**k for k in range(n.bit_length()) if FIRST * 2**k <= CLOSE * n][1 - LOOKS :]
        if not counts:
            return cls.single(n, alpha)
        rest = (1 - LAST) * alpha / len(counts)
        return cls((*counts, n), (*[rest] * len(counts), LAST * alpha))

    @classmethod
    def single(cls, n: int, alpha: float) -> "Schedule":
        """Look once, at all n copies."""
        return cls((n,), (alpha,))

    @classmethod
    def of(cls, question: str, n: int, alpha: float) -> "Schedule":
        """Look once if the question is about all copies, else in stages."""
        return cls.single(n, alpha) if question == "full" else cls.staged(n, alpha)

    def bounds(
        self, own: Int[np.ndarray, "stages *n"], second: Int[np.ndarray, "stages *n"]
    ) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
        """Compute, after the given stages, the one-class bound p and the two-class bounds p and q over all looks.

        Args:
            own: cumulative votes for class A at each look so far.
            second: cumulative votes for the other class with the most votes.

        The two-class bounds share each level equally. No union over classes is needed: votes for the class that is
        truly second are at most ``second``, and the bound rises with the votes.
        """
        looks = list(zip(self.counts, self.levels, own, second, strict=False))
        one = np.max([lower(k, n, level) for n, level, k, _ in looks], axis=0)
        p = np.max([lower(k, n, level / 2) for n, level, k, _ in looks], axis=0)
        q = np.min([upper(k, n, level / 2) for n, level, _, k in looks], axis=0)
        return one, p, np.minimum(q, np.asarray(1.0 - p))


def attainable(law: Law, schedule: Schedule) -> float:
    """Compute the largest possible radius, from a unanimous vote at every look."""
    votes = np.array(schedule.counts)[:, None]
    return float(law.one_class(schedule.bounds(votes, votes * 0)[0])[0])


def notes_of(law: Law, schedule: Schedule) -> dict[str, str]:
    """Describe the levels at which the certificates hold, and their subject."""
    looks = zip(schedule.counts, schedule.levels, strict=True)
    return {
        "schedule": ", ".join(f"{level:.3g} at {n}" for n, level in looks),
        "attainable": f"{attainable(law, schedule):.9g}",
        "model": "the smoothed classifier, not the network by itself",
    }
