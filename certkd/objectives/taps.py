"""TAPS and STAPS: intervals through the first layers, an attack through the last ones."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.certified import Expressive, margins_of, small_box
from verifiers.bound_propagation import Ends, Split, ball, robust_cross_entropy, split_before
from verifiers.core.settings import Count, Positive, Share


class Taps(Expressive):
    """CE(worst logits by IBP, y) CE(worst logits found in the box of inner values, y).

    IBP bounds the values before the last ``activations`` activations; in their box an attack of ``latent_steps`` signed
    steps of ``latent_step_size`` times the box raises f_j - f_y for each class j on its own. Such a point moves with
    the lower end of the box by max(0, 1 - (z - low) / (c (high - low))), c = ``link``, and with the upper one likewise.
    ``balance`` b shares the gradient of the product between its factors: 2 b of the attack's, 2 (1 - b) of IBP's.

    ``share`` below 1 is STAPS: the box of the images is the small one of sabr, of that share of eps. eps grows from 0
    over the first share ``ramp`` of the training. The last layers are attacked in eval mode.
    """

    kind: Literal["taps"] = "taps"
    share: Share = 1.0
    activations: Count = 1
    latent_steps: Count = 10
    latent_step_size: Positive = 0.2
    link: Positive = 0.5
    balance: Share = 0.5
    summary: ClassVar[str] = "intervals through the first layers times an attack through the last (certified teacher)"
    paper: ClassVar[str] = "Mao et al., arXiv 2305.04574"

    def terms(self, batch: Batch) -> Terms:
        box = small_box(self, batch, self.share) if self.share < 1 else ball(batch.x, self.grown(batch))
        split = split_before(batch.student, box, batch.y, self.activations)
        sound, found = robust_cross_entropy(split.margins), robust_cross_entropy(self._attacked(batch, split))
        surrogate = 2 * (self.balance * sound.detach() * found + (1 - self.balance) * found.detach() * sound)
        value = (sound * found).detach() + surrogate - surrogate.detach()
        return {"ce_product": Term(1.0, value), **self.warmup(batch, box)}

    def _attacked(self, batch: Batch, split: Split) -> Float[Tensor, "batch classes"]:
        """Compute the margin to each class at the point that lowers it most."""
        low, high = (end.detach() for end in split.box)
        width, classes = (high - low)[:, None], split.margins.shape[1]
        z = low[:, None] + width * (1 + batch.uniform(low[:, None].expand(-1, classes, *low.shape[1:]))) / 2
        for _ in range(self.latent_steps):
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self._margins(batch, split, z).sum(), z)
            z = (z - self.latent_step_size * width * slope.sign()).clamp(low[:, None], high[:, None])
        return self._margins(batch, split, self._linked(z.detach(), split.box))

    def _margins(self, batch: Batch, split: Split, z: Tensor) -> Float[Tensor, "batch classes"]:
        """Compute the margin to class j at the point of class j."""
        logits = split.rest(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        rows = margins_of(logits.flatten(0, 1), batch.y.repeat_interleave(z.shape[1])).unflatten(0, z.shape[:2])
        return rows.diagonal(dim1=1, dim2=2)

    def _linked(self, z: Float[Tensor, "batch classes *values"], box: Ends) -> Float[Tensor, "batch classes *values"]:
        """Let points move with the ends of their box; with both by half where the box is a point."""
        low, high = (end[:, None] for end in box)
        width = (high - low).detach()
        for end, away in ((low, z - low.detach()), (high, high.detach() - z)):
            part = (1 - away / (self.link * width)).clamp_min(0).where(width > 0, 0.5)
            z = z + part * (end - end.detach())
        return z
