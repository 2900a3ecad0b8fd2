"""CAT, collaborative adversarial training, with a peer that is trained already."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from certkd.objectives.trades import Trades
from verifiers.core.settings import Share


class Cat(Trades):
    """(1 - share) [CE(s(x), y) + beta KL(s(x) || s(x'))] + share KL(t(x') || s(x')), x' raises KL(s(x) || s(x')).

    In the paper two networks learn at once, one by TRADES and one by ALP, each from the other's outputs on its own
    adversarial examples. Here the peer is the frozen teacher, so this is the half of the network that uses TRADES.
    """

    kind: Literal["cat"] = "cat"  # type: ignore[assignment]
    share: Share = 0.95
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "trades, and a robust peer's outputs on its adversarial examples"
    paper: ClassVar[str] = "Liu et al., arXiv 2303.14922"

    def terms(self, batch: Batch) -> Terms:
        adversarial = self.away_from_itself(batch)
        logits, attacked = batch.student(batch.x), batch.student(adversarial)
        return {
            "ce": Term(1 - self.share, F.cross_entropy(logits, batch.y)),
            "kl_self": Term((1 - self.share) * self.beta, kl_each(attacked, logits).mean()),
            "kl_peer": Term(self.share, kl_each(attacked, batch.constant(adversarial)).mean()),
        }
