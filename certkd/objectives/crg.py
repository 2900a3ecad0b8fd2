"""Channels' relational graph: features of a robust teacher, and how its channels relate."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.features import features_of_both
from verifiers.core.settings import Number


class Crg(Attacked):
    """CE(s(x'), y) + lambda_vertices mean (h_s - h_t)^2 + lambda_edges mean_kl (cos_kl of h_s - cos_kl of h_t)^2.

    h are features at x', the input of the last layer; student and teacher have the same channels. cos_kl is the cosine
    of channels k and l, each a vector over the batch (and the pixels). x' is from PGD on the cross-entropy. Only the
    paper's abstract was read. Its loss has vertices, edges and a spectral embedding of the graph, at several layers;
    that the images are adversarial and the last layer alone counts is ours, and the embedding is left out.
    """

    kind: Literal["crg"] = "crg"
    lambda_vertices: Number = 1.0
    lambda_edges: Number = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "cross-entropy on PGD examples, the teacher's features and its channels' relations"
    paper: ClassVar[str] = "Wang et al., arXiv 2405.08547 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        adversarial = self.adversarial(batch)
        logits, ours, theirs = features_of_both(batch, adversarial, adversarial)
        return {
            "ce_adversarial": Term(1.0, F.cross_entropy(logits, batch.y)),
            "vertices": Term(self.lambda_vertices, F.mse_loss(ours, theirs)),
            "edges": Term(self.lambda_edges, F.mse_loss(relations(ours), relations(theirs))),
        }


def relations(features: Float[Tensor, "batch channels *pixels"]) -> Float[Tensor, "channels channels"]:
    """Compute the cosine of each two channels; 0 with a channel that is zero."""
    channels = F.normalize(features.transpose(0, 1).flatten(1), dim=1, eps=torch.finfo(features.dtype).tiny ** 0.5)
    return channels @ channels.T
