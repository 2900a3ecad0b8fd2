"""Run every stored counterexample through the network again."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.certify.audit.findings import Finding
from verifiers.certify.audit.subject import Subject, blocks
from verifiers.core.status import About, Status
from verifiers.geometry.balls import norms, per_sample
from verifiers.geometry.margins import margins
from verifiers.methods.registry import find
from verifiers.results.reader import read_images
from verifiers.results.rows import MethodRows

#: Largest relative error of a stored distance or margin when it is computed again.
ROUNDING = 1e-3
#: Largest error of a counterexample's margin on another machine or in another batch, as a share of its largest logit.
#: Attacks stop so near the decision boundary that this can change its sign.
LOGIT_ROUNDING = 1e-5


def check_counterexamples(subject: Subject, rows: MethodRows) -> Finding:
    """Check that every stored counterexample is in the ball and the image box, and gets another class."""
    found = Finding(rows.name, rows.count(Status.FALSIFIED), remark="counterexamples")
    for block in blocks(np.flatnonzero(rows["status"] == Status.FALSIFIED)):
        stored = torch.from_numpy(read_images(subject.certificates.path, rows.name, "counterexample", block))
        problems, margin = _problems(subject, rows, block, stored.to(subject.program.device))
        bad = np.any(list(problems.values()), axis=0)
        for i in np.flatnonzero(bad):
            what = next(name for name, broken in problems.items() if broken[i])
            found.contradictions.append(f"{rows.name}, sample {rows['index'][block[i]]}: its counterexample {what}")
        found.asked, found.again = found.asked + len(block), found.again + int((~bad & (margin < 0)).sum())
    return found


def _problems(
    subject: Subject, rows: MethodRows, block: np.ndarray, stored: Tensor
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mark the counterexamples that do not hold; also return their margins."""
    x = subject.samples.batch(block, stored.device)
    distance = norms(stored.double() - x.double(), subject.norm).cpu().numpy()
    with torch.no_grad():
        logits = subject.program.module(stored)
    margin = margins(logits, subject.samples.predicted[block].to(stored.device)).double().cpu().numpy()
    slack = LOGIT_ROUNDING * logits.abs().amax(1).clamp_min(1.0).double().cpu().numpy()
    problems = {
        "is outside the ball": ~(distance <= rows.eps),
        "is outside the image box": ~((stored >= 0) & (stored <= 1)).flatten(1).all(1).cpu().numpy(),
        "is classified right": ~(margin < slack),
        "is at another distance": ~np.isclose(distance, rows["distance"][block], rtol=ROUNDING),
        "has another margin": ~(np.abs(margin - rows["margin"][block]) <= 10 * slack + ROUNDING * np.abs(margin)),
    }
    return problems, margin


def stored_counterexamples(
    subject: Subject, block: np.ndarray, x: Float[Tensor, "batch *shape"]
) -> Iterator[Float[Tensor, "batch *shape"]]:
    """Yield the stored counterexamples of the student by each method; the image where there is none."""
    for rows in subject.certificates:
        method = find(rows.name)
        if method.about is About.NETWORK and any(column.name == "counterexample" for column in method.columns):
            stored = torch.from_numpy(read_images(subject.certificates.path, rows.name, "counterexample", block)).to(x)
            held = torch.as_tensor(rows["status"][block] == Status.FALSIFIED, device=x.device)
            yield torch.where(per_sample(held, x), stored, x)
