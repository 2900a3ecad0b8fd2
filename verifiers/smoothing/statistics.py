"""Confidence bounds of a vote, and the radius that they certify.

Of n noisy copies of an image, k were given class A. Clopper-Pearson bounds the probability of that class; the noise's
law turns the bound into a radius. All levels are one-sided error probabilities.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from verifiers.core.noise import Noise
from verifiers.core.quantities import Norm

#: What radii are shortened by: more than the error of the special functions, which is some units of 1e-15 in p.
SLACK = 1e-12


def lower(k: Int[np.ndarray, "*n"], n: int, level: float) -> Float[np.ndarray, "*n"]:
    """Probability that is exceeded by the true one unless an event of probability ``level`` happened; 0 at k = 0.

    Source: Clopper and Pearson, Biometrika 26, 1934. At k = n it is level^(1/n).
    """
    from scipy.special import betaincinv

    bound = betaincinv(np.maximum(k, 1), n - k + 1, level)
    return np.where(k == 0, 0.0, np.where(k == n, level ** (1.0 / n), bound))


def upper(k: Int[np.ndarray, "*n"], n: int, level: float) -> Float[np.ndarray, "*n"]:
    """The upper counterpart, 1 - lower(n - k, n): in this form it keeps its digits near 1."""
    return np.asarray(1.0 - lower(np.asarray(n - k), n, level))


@dataclass(frozen=True)
class Law:
    """Noise of one kind and size, and the norm in which radii are wanted.

    Attributes:
        noise: gaussian, or uniform on [-l, l] with l = sqrt(3) sigma in each pixel.
        sigma: its standard deviation, pixel units.
        norm: of the ball.
        pixels: number of input values, for linf radii from l2 ones.
    """

    noise: Noise
    sigma: float
    norm: Norm
    pixels: int

    def radius(self, p: Float[np.ndarray, "*n"], q: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Radius within which class A, of probability at least p, stays ahead of any other, of probability at most q.

        sigma (Phi^-1(p) - Phi^-1(q)) / 2 for gaussian noise (Cohen et al., arXiv 1902.02918), as it is for l1, and over
        the root of the number of pixels for linf; l (p - q) for uniform noise (Yang et al., arXiv 2002.08118). Rounded
        down; 0 where p <= q.
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
        """The radius when all other classes together have at most 1 - p."""
        return self.radius(p, np.asarray(1.0 - p))


@dataclass(frozen=True)
class Schedule:
    """When a vote is looked at, and what share of alpha each look may spend; fixed before the first draw.

    Attributes:
        counts: cumulative numbers of noisy copies, ascending.
        levels: error probability of each look; they sum to alpha, so all bounds hold together.
    """

    counts: tuple[int, ...]
    levels: tuple[float, ...]

    @classmethod
    def staged(cls, n: int, alpha: float) -> "Schedule":
        """Looks at 1, 3, 10, 30 and 100 % of n, on copies that add up."""
        shares = {0.01: 0.05, 0.03: 0.05, 0.1: 0.1, 0.3: 0.2, 1.0: 0.6}
        counts = [max(1, round(share * n)) for share in shares]
        if len(set(counts)) < len(counts):
            return cls.single(n, alpha)
        return cls(tuple(counts), tuple(alpha * level for level in shares.values()))

    @classmethod
    def single(cls, n: int, alpha: float) -> "Schedule":
        """One look, at all of n."""
        return cls((n,), (alpha,))

    def bounds(
        self, own: Int[np.ndarray, "stages *n"], second: Int[np.ndarray, "stages *n"]
    ) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
        """After the stages given: the one-class bound p, and the two-class bounds p and q, each over all looks.

        Args:
            own: cumulative votes for class A at each look so far.
            second: cumulative votes for the other class that has most.

        The two-class bounds share each level, half and half. No union over classes is needed: votes for the class that
        truly comes second are at most ``second``, and the bound rises with the votes.
        """
        looks = list(zip(self.counts, self.levels, own, second, strict=False))
        one = np.max([lower(k, n, level) for n, level, k, _ in looks], axis=0)
        p = np.max([lower(k, n, level / 2) for n, level, k, _ in looks], axis=0)
        q = np.min([upper(k, n, level / 2) for n, level, _, k in looks], axis=0)
        return one, p, np.minimum(q, np.asarray(1.0 - p))


def attainable(law: Law, schedule: Schedule) -> float:
    """The largest radius there can be: every copy voted for one class at every look."""
    votes = np.array(schedule.counts)[:, None]
    return float(law.one_class(schedule.bounds(votes, votes * 0)[0])[0])


def notes_of(law: Law, schedule: Schedule) -> dict[str, str]:
    """Note at which levels the certificates hold, and what they are about."""
    looks = zip(schedule.counts, schedule.levels, strict=True)
    return {
        "schedule": ", ".join(f"{level:.3g} at {n}" for n, level in looks),
        "attainable": f"{attainable(law, schedule):.9g}",
        "model": "the smoothed classifier, not the network by itself",
    }
