"""Attack every radius that a file claims, at that radius."""

from collections.abc import Sequence

import numpy as np
import torch

from verifiers.certify.attacked import Judge
from verifiers.certify.audit.counterexamples import stored_counterexamples
from verifiers.certify.audit.findings import Finding
from verifiers.certify.audit.subject import Subject, blocks
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.attack import Attack, Found
from verifiers.geometry.balls import Balls, norms, per_sample
from verifiers.graph.program import Program
from verifiers.methods.registry import find, keeps
from verifiers.results.rows import MethodRows

#: The steps and restarts of the attack on every claim.
STEPS, RESTARTS = 25, 7


def attack_claims(subject: Subject) -> list[Finding]:
    """Attack the claims of all methods about the network, and those about the teacher too if it is given.

    The largest claim of a row is attacked; its ball contains those of the others. A counterexample that excludes it
    leaves the smaller claims, which are attacked next. Claims about the real numbers are attacked in float64, and by
    the stored counterexamples, which are those of float32.
    """
    claims = [rows for rows in subject.certificates if keeps(rows.name) and (rows["radius"] > 0).any()]
    both = [rows for rows in claims if find(rows.name).both]
    findings = _attacked(subject, claims, subject.program, "the prediction")
    if subject.teacher is not None:
        findings += _attacked(subject, both, subject.teacher, "the teacher's prediction")
    return findings


def _attacked(subject: Subject, claims: Sequence[MethodRows], program: Program, what: str) -> list[Finding]:
    if not claims:
        return []
    radii, judge = np.stack([rows["radius"] for rows in claims]), Judge(program, subject.arithmetic)
    nearest = np.full(radii.shape[1], np.inf)
    if program is subject.program and subject.arithmetic is Arithmetic.REAL:
        nearest = _nearest_stored(subject, np.flatnonzero(radii.max(0) > 0), judge)
    largest = np.where(radii < nearest, radii, 0.0).max(0)
    subject.reporter.start("attack", int((largest > 0).sum()), 0)
    while (left := np.flatnonzero(largest > 0)).size:
        hit = np.zeros(len(nearest), bool)
        for block in blocks(left):
            found = _attack(subject, judge, block, largest[block])
            broken = block[found.broken.cpu().numpy()]
            hit[broken] = True
            nearest[broken] = found.distance[found.broken].cpu().numpy()
            subject.reporter.advance(len(block))
        largest = np.where(hit, np.where(radii < nearest, radii, 0.0).max(0), 0.0)
    subject.reporter.finish("attack")
    return [_finding(rows, nearest, what) for rows in claims]


def _nearest_stored(subject: Subject, claimed: np.ndarray, judge: Judge) -> np.ndarray:
    """Return the distances of stored counterexamples that are counterexamples of the claims too; inf where none is."""
    nearest = np.full(len(subject.samples.labels), np.inf)
    for block in blocks(claimed):
        x = subject.samples.batch(block, subject.program.device)
        for point in stored_counterexamples(subject, block, x):
            hit = judge(point, subject.samples.predicted[block].to(x.device)).broken
            distance = torch.where(hit, norms(point.double() - x.double(), subject.norm), torch.inf)
            nearest[block] = np.fmin(nearest[block], distance.cpu().numpy())
    return nearest


def _attack(subject: Subject, judge: Judge, block: np.ndarray, radius: np.ndarray) -> Found:
    """Attack some rows, each at its own radius."""
    samples, device = subject.samples, subject.program.device
    x, predicted = judge.cast(samples.batch(block, device)), samples.predicted[block].to(device)
    balls = Balls(x, torch.as_tensor(radius, dtype=torch.float64, device=device), subject.norm)
    attack = Attack(float(radius.max()), subject.norm, subject.seed, STEPS, RESTARTS)
    found = attack.within(judge.network, balls, predicted, samples.indices[block].tolist())
    sure = judge(torch.where(per_sample(found.broken, x), found.point, x), predicted).broken
    return found._replace(broken=found.broken & sure)


def _finding(rows: MethodRows, nearest: np.ndarray, what: str) -> Finding:
    claimed = rows["radius"] > 0
    broken = np.flatnonzero(claimed & (nearest <= rows["radius"]))
    count = int(claimed.sum())
    found = Finding(rows.name, count, count, count - len(broken), remark=f"attacks on {what} within each radius")
    found.contradictions += [
        f"{rows.name}, sample {rows['index'][row]}: a point at distance {nearest[row]:.6g} changes {what}, "
        f"its certified radius is {rows['radius'][row]:.6g}"
        for row in broken
    ]
    return found
