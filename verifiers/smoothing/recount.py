"""Count stored votes again: on the same copies, and on fresh ones.

The same copies must get the same votes, up to ties of logits on another machine. Fresh ones must be consistent with the
stored votes: a seed that was chosen because its noise was kind does not help there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from verifiers.runtime.certifier import Batch
from verifiers.smoothing.recompute import Marks
from verifiers.smoothing.sampling import Draw, Purpose, Voter

#: Copies per sample, at most, of each of the two recounts.
COPIES = 2000
#: Probability that an honest file fails the test of fresh copies.
LEVEL = 1e-6
#: Share of votes, at least one of them, that ties of logits may move; and votes by which they may turn a selection.
TIES, FEW = 0.002, 2


@dataclass(frozen=True)
class Recount:
    """Repeat parts of the votes of one network.

    Attributes:
        voter: the network with the noise and the seed of the file.
        counts: copies at each look.
        selection: copies that select the class.
    """

    voter: Voter
    counts: Sequence[int]
    selection: int

    def __call__(self, batch: Batch, stored: Mapping[str, np.ndarray], seed: int, tests: int) -> Marks:
        """Mark rows whose stored votes do not repeat.

        Args:
            batch: the samples.
            stored: their columns ``selected``, ``stage``, ``used`` and ``votes``.
            seed: seed of the fresh copies.
            tests: rows that are tested in the whole file, which share ``LEVEL``.
        """
        votes, selected, used = stored["votes"].astype(np.int64), stored["selected"], stored["used"]
        copies = min(COPIES, self.counts[-1])
        again = self._histogram(batch, copies, Purpose.ESTIMATION, seed)
        place = np.arange(len(selected)), np.clip(selected, 0, votes.shape[2] - 1)
        p = consistency(votes[:, -1][place], used, again[place], copies)
        return {
            **self._same_copies(batch, votes, stored["stage"].astype(int)),
            **self._selected(batch, selected),
            f"{copies} fresh copies do not agree with its votes": p < LEVEL / (tests * len(self.counts)),
        }

    def _same_copies(self, batch: Batch, votes: np.ndarray, stage: np.ndarray) -> Marks:
        """Repeat each row's last look of few enough copies."""
        counts = [n for n in self.counts if n <= COPIES]
        last, moved = np.minimum(stage, len(counts)), np.zeros(len(stage), bool)
        for look in np.unique(last[last >= 1]).tolist():
            again = self._histogram(batch, counts[look - 1], Purpose.ESTIMATION)
            stored = votes[:, look - 1]
            far = np.abs(again - stored).sum(1) > 2 * max(1, TIES * counts[look - 1])
            moved |= (last == look) & far
        return {"its votes are others on the same copies": moved}

    def _selected(self, batch: Batch, selected: np.ndarray) -> Marks:
        """Repeat the selection of the class."""
        if self.selection > COPIES:
            return {}
        counts = self._histogram(batch, self.selection, Purpose.SELECTION)
        own = np.take_along_axis(counts, np.clip(selected, 0, counts.shape[1] - 1)[:, None], 1)[:, 0]
        return {"its selection copies choose another class": counts.max(1) - own > FEW}

    def _histogram(
        self, batch: Batch, copies: int, purpose: Purpose, seed: int | None = None
    ) -> Int[np.ndarray, "rows classes"]:
        draws = [Draw(i, int(index), 0, copies) for i, index in enumerate(batch.indices.tolist())]
        before = self.voter.seed
        self.voter.seed = before if seed is None else seed
        try:
            found: np.ndarray = self.voter.histogram(batch.x, draws, purpose, batch.classes)[0].cpu().numpy()
        finally:
            self.voter.seed = before
        return found


def consistency(
    k: Int[np.ndarray, " rows"], n: Int[np.ndarray, " rows"], again: Int[np.ndarray, " rows"], m: int
) -> Float[np.ndarray, " rows"]:
    """Compute two-sided p-values of k of n and ``again`` of m votes, if both had one probability.

    Source: Fisher's exact test; the smaller tail of the hypergeometric law, doubled.
    """
    from scipy.special import gammaln

    def log_choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            found = gammaln(a + 1.0) - gammaln(b + 1.0) - gammaln(a - b + 1.0)
        return np.where((b < 0) | (b > a), -np.inf, found)

    hits = np.arange(m + 1)[None]
    total, good = (n + m)[:, None], (k + again)[:, None]
    weight = log_choose(good, hits) + log_choose(total - good, m - hits) - log_choose(total, np.asarray(m))
    chance = np.exp(weight)
    below = np.where(hits <= again[:, None], chance, 0.0).sum(1)
    above = np.where(hits >= again[:, None], chance, 0.0).sum(1)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(below, above)))
