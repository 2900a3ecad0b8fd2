"""Audit a certificate file: check what it says by other means than those of its author.

A claim is one row's "no point within radius r changes the prediction", a counterexample, an attack that found none, or
a vote. Nothing in the file is trusted: what a method's rows are worth is known from the method, and what follows from
other columns is computed again. Every radius is attacked, and every counterexample runs through the network again.
Rows drawn at random are computed again by their own method, and their radii are proved by the other engine or by branch
and bound. A result that excludes a stored claim is a contradiction.
"""

import secrets
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from verifiers.certify.audit.again import run_again
from verifiers.certify.audit.claims import attack_claims
from verifiers.certify.audit.columns import check_columns
from verifiers.certify.audit.counterexamples import check_counterexamples
from verifiers.certify.audit.findings import Audit, Finding, of_rows
from verifiers.certify.audit.meaning import disagreements, indices_of, refuse_absurd
from verifiers.certify.audit.points import check_balls, check_least, check_points
from verifiers.certify.audit.proofs import prove
from verifiers.certify.audit.subject import Subject
from verifiers.certify.audit.votes import recount
from verifiers.certify.certify import hold_both
from verifiers.certify.identity import facts_of
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic
from verifiers.core.reporter import Reporter, Warner
from verifiers.core.settings import Count, CountOrZero, Positive, Seed, Strict
from verifiers.core.status import FAILURES, About, Status
from verifiers.core.table import counted
from verifiers.graph.integers import computes_in_int8
from verifiers.graph.program import Program
from verifiers.methods.registry import find, keeps
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.runtime.fingerprint import structure_sha256, weights_sha256
from verifiers.runtime.modes import eval_mode, trusted_arithmetic
from verifiers.runtime.samples import Data, Samples, validate
from verifiers.runtime.staff import Staff

#: What no audit looks at.
UNCHECKED = (
    "seconds, notes, versions, device, command line and start of the run are as the file says, and so are stages, "
    "numbers of parts, and margins of stages after CROWN"
)


class VerifyConfig(Strict):
    """The settings of an audit.

    Attributes:
        sample: number of rows, drawn at random, that every method computes again, and whose radii are proved again.
        seed: seed of the choice and of fresh noise; drawn when None, so that no file can be made to suit it.
        time_limit: seconds per proof.
        workers: processes that compute rows again.
        cluster: a Dask cluster that computes them instead.
    """

    sample: CountOrZero = 50
    seed: Seed | None = None
    time_limit: Positive = 30.0
    workers: Count = 1
    cluster: str | None = None


def verify(
    network: nn.Module,
    path: str,
    data: Data,
    config: VerifyConfig,
    *,
    teacher: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """Audit a certificate file.

    Args:
        network: the network of the file.
        path: the certificate file.
        data: images in [0, 1] and true classes of the file's rows, in their order. What ``about`` says of the network
            is compared with the file.
        config: the settings.
        teacher: the network that rows about a pair compare with; without it they are attacked alone.
        reporter: receives progress.

    Raises:
        InputError: the path is not a certificate file, the network, teacher or samples are not the file's own, the file
            has no rows yet, or it has values that no method writes.
    """
    certificates, reporter = read(path), reporter or Warner()
    refuse_absurd(certificates)
    indices = torch.as_tensor(indices_of(certificates))
    with torch.inference_mode(False), eval_mode(network), eval_mode(teacher or network), trusted_arithmetic():
        _check_networks(certificates, network, teacher)
        paired = any(find(rows.name).about is About.PAIR for rows in certificates)
        program = Program(network, paired=paired)
        reference = None if teacher is None else Program(teacher, paired=paired)
        samples = validate(network, replace(data, indices=indices), reporter, partial(hold_both, program, reference))
        _check_origin(certificates, "set of samples", "data_sha256", samples.data_sha256)
        subject = _subject(certificates, (program, reference), samples, config, reporter)
        findings = _checked(subject, _facts(subject))
    order = ["file", *certificates.methods]
    findings = sorted((finding for finding in findings if finding.claims), key=lambda one: order.index(one.method))
    return Audit(findings, _missing(subject), _limits(subject, findings), subject.seed)


def _subject(
    certificates: Certificates,
    networks: tuple[Program, Program | None],
    samples: Samples,
    config: VerifyConfig,
    reporter: Reporter,
) -> Subject:
    """Draw the rows."""
    seed = secrets.randbits(63) if config.seed is None else config.seed
    chosen = np.random.default_rng(seed).permutation(len(samples.labels))[: config.sample]
    return Subject(
        certificates,
        *networks,
        samples,
        np.sort(chosen),
        seed,
        config.time_limit,
        reporter,
        Staff(config.workers, config.cluster),
    )


def _check_arithmetic(certificates: Certificates, network: nn.Module, teacher: nn.Module | None) -> None:
    """Check that a file says int8 if, and only if, a network computes so; a teacher that is not given may."""
    stated = certificates.attributes.get("arithmetic")
    int8 = any(computes_in_int8(one) for one in (network, teacher) if one is not None)
    unknown = teacher is None and "joint_teacher_sha256" in certificates.attributes
    if stated is not None and int8 != (stated == Arithmetic.INT8) and not (unknown and not int8):
        known = "computes in int8" if int8 else "does not compute in int8"
        raise InputError(f"{certificates.path} says arithmetic {stated}, and the network {known}")


def _check_networks(certificates: Certificates, network: nn.Module, teacher: nn.Module | None) -> None:
    """Check that networks are those of the file."""
    _check_origin(certificates, "network", "model_sha256", weights_sha256(network))
    _check_origin(certificates, "structure", "structure_sha256", structure_sha256(network))
    _check_arithmetic(certificates, network, teacher)
    if teacher is not None:
        if not any(find(rows.name).about is About.PAIR for rows in certificates):
            raise InputError(f"{certificates.path} has no rows about a teacher: give none")
        _check_origin(certificates, "teacher", "joint_teacher_sha256", weights_sha256(teacher))
        _check_origin(certificates, "teacher", "joint_teacher_structure_sha256", structure_sha256(teacher))


def _check_origin(certificates: Certificates, what: str, attribute: str, found: str) -> None:
    """Check that a hash in the file is that of the given network or samples."""
    stored = str(certificates.attributes.get(attribute, ""))
    if stored != found:
        raise InputError(
            f"{certificates.path} is about another {what} ({attribute} {stored[:16] or 'unknown'}, "
            f"not {found[:16]}): name what it was made from"
        )


def _facts(subject: Subject) -> Finding:
    """Check what the file says of itself, of its methods and of its network."""
    certificates, program = subject.certificates, subject.program
    programs = {"program_sha256": program.sha256, "last_layer": program.last_layer}
    run = facts_of(program)
    run = {"pixels": subject.pixels, **{name: run[name] for name in ("dtype", "tf32", "deterministic_algorithms")}}
    if subject.teacher is not None:
        programs["joint_teacher_program_sha256"] = subject.teacher.sha256
    lines = list(disagreements(certificates))
    for name, value in {**subject.samples.about, **programs}.items():
        stored = certificates.attributes.get(name, "")
        if value != stored and (value or name == "last_layer"):
            lines.append(f"its {name} is {stored or 'not given'}, the network's is {value}")
    lines += [
        f"its {name} is {certificates.attributes[name]}, that of this network, these images and certkd is {value}"
        for name, value in run.items()
        if certificates.attributes.get(name, value) != value
    ]
    asked = 1 + len(certificates.methods)
    return Finding("file", asked, asked, max(0, asked - len(lines)), lines, "hashes, identity, settings, guarantees")


def _checked(subject: Subject, facts: Finding) -> list[Finding]:
    """Run all checks, the cheap ones first."""
    findings = [facts]
    for rows in subject.certificates:
        findings.append(check_columns(subject, rows))
        if find(rows.name).relational:
            findings.append(check_points(subject, rows))
            findings += [] if subject.teacher is None else [check_balls(subject, rows), check_least(subject, rows)]
        elif any(column.name == "counterexample" for column in find(rows.name).columns):
            findings.append(check_counterexamples(subject, rows))
    findings += attack_claims(subject)
    for check in (recount, run_again, _proved_again):  # from cheap to dear; the dear ones cannot help a wrong file
        if not any(finding.contradictions for finding in findings):
            findings += check(subject)
    return findings


def _proved_again(subject: Subject) -> list[Finding]:
    proved = [rows for rows in subject.certificates if keeps(rows.name)]
    subject.reporter.start("prove", sum(int((rows["radius"][subject.chosen] > 0).sum()) for rows in proved), 0)
    findings = [prove(subject, rows) for rows in proved]
    subject.reporter.finish("prove")
    return findings


def _missing(subject: Subject) -> list[str]:
    """Name the claims that nothing looked at."""
    lines = [
        f"{rows.name} compares with a teacher that was not given: give the teacher"
        for rows in subject.certificates
        if subject.missing_teacher(rows.name) and (rows["status"] != Status.PENDING).any()
    ]
    pending = subject.certificates.pending
    return [*lines, *([f"the file is not finished: {counted(pending, 'row')} without an answer"] if pending else [])]


def _limits(subject: Subject, findings: list[Finding]) -> list[str]:
    """Name what was looked at in part only."""
    lines, total, few = [], len(subject.samples.labels), len(subject.chosen)
    if any(finding.contradictions for finding in findings):
        lines.append("a file that is wrong is not looked at any further")
    if few < total:
        lines.append(
            f"{of_rows(few, total)} were run again and proved again; the other radii were attacked, or computed from "
            "their votes"
        )
    for words, what in (("proofs", "could not be proved again"), ("run again", "could not be decided again")):
        left = {f.method: f.open for f in findings if f.remark.startswith(words) and f.open}
        lines += [f"{counted(count, 'row')} of {name} {what}" for name, count in left.items()]
    lines += [
        f"{f.method}: no proof again: {f.remark[8:]}" for f in findings if f.remark[:8] == "proofs: " and not f.asked
    ]
    failed = {rows.name: int(np.isin(rows["status"], FAILURES).sum()) for rows in subject.certificates}
    lines += [f"{counted(count, 'row')} of {name} failed, and claim nothing" for name, count in failed.items() if count]
    return [*lines, UNCHECKED]
