"""SmoothAdv: adversarial training of the smoothed classifier."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch, Objective, Term, Terms
from certkd.objectives.consistency import log_mean
from verifiers.core.quantities import Norm
from verifiers.core.settings import Count, Positive, Radius


class Averaged(nn.Module):
    """A network's softmax averaged over fixed noise, as log-probabilities; its cross-entropy is -log of the mean."""

    def __init__(self, model: nn.Module, noise: Float[Tensor, "copies batch *shape"]) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        logits = self.model((x + self.noise).flatten(0, 1))
        return log_mean(F.log_softmax(logits, dim=1).unflatten(0, (len(self.noise), -1)))


class SmoothAdv(Objective):
    """mean_i CE(f(x' + n_i), y); x' raises -log mean_i softmax_y(f(x' + n_i)) over the l2 ball of eps around x.

    n_i is drawn from N(0, sigma^2 I) in each batch, the same in the attack and in the training step; sigma and eps are
    in pixel units. x' stays in [0, 1]; x' + n_i need not. As in the authors' code, PGD starts at x, takes steps of
    2 eps / steps, and attacks the network in eval mode. Their growth of eps over the first epochs is left out.
    """

    kind: Literal["smoothadv"] = "smoothadv"
    eps: Radius
    sigma: Positive = 0.25
    steps: Count = 4
    copies: Count = 2
    summary: ClassVar[str] = "cross-entropy on l2 PGD examples of the smoothed classifier, under the same noise"
    paper: ClassVar[str] = "Salman et al., arXiv 1906.04584"

    def terms(self, batch: Batch) -> Terms:
        noise = batch.noise(self.sigma, self.copies)
        attack = Pgd(eps=self.eps, norm=Norm.L2, steps=self.steps, step_size=2 * self.eps / self.steps)
        adversarial = attack.fool(Averaged(batch.student, noise), batch.x, batch.y)
        logits = batch.student((adversarial + noise).flatten(0, 1))
        return {"ce_adversarial": Term(1.0, F.cross_entropy(logits, batch.y.repeat(self.copies)))}
