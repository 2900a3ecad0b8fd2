"""Prove a certificate file's claims again, by other means than those of their author.

A claim is one row's "no point within radius r changes the prediction". It is attacked at r, then proved by the other
engine if that supports the network, and by branch and bound in float64. The method behind the claim does not matter.
Stored counterexamples run through the network again. A result that excludes a stored claim is a contradiction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from verifiers.bound_propagation import Complete as Prover
from verifiers.certify.batches import Asked
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Epsilon, Norm, parse_arithmetic
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.settings import CountOrZero, Positive, Seed, Strict
from verifiers.core.status import About, Status
from verifiers.geometry.balls import norms
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.methods.complete import Complete
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.reader import opened, read, read_images
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.complete import Stage
from verifiers.runtime.fingerprint import structure_sha256, weights_sha256
from verifiers.runtime.modes import eval_mode, trusted_arithmetic
from verifiers.runtime.samples import Data, Samples, device_of, first_images, validate

#: Images per block of reading and running.
BLOCK = 256
#: Largest relative error of a stored distance when it is computed again.
ROUNDING = 1e-3
#: Largest error of a counterexample's margin on another machine or in another batch, as a share of its largest logit.
#: Attacks stop so near the decision boundary that this can change its sign.
LOGIT_ROUNDING = 1e-5


@dataclass
class Finding:
    """The result for one method's claims.

    Attributes:
        method: the method's name.
        claims: number of certified rows or counterexamples.
        asked: number of claims that were checked.
        again: number of claims that hold: proved again, or misclassified again.
        contradictions: a line for each claim that does not hold.
        remark: the means of proof, or why claims were not checked.
    """

    method: str
    claims: int
    asked: int = 0
    again: int = 0
    contradictions: list[str] = field(default_factory=list)
    remark: str = ""

    @property
    def open(self) -> int:
        """The number of claims that were neither proved again nor contradicted."""
        return self.asked - self.again - len(self.contradictions)


class VerifyConfig(Strict):
    """The settings of a verification.

    Attributes:
        sample: number of certificates to prove again, over all methods.
        seed: seed of their random choice.
        time_limit: seconds per certificate.
    """

    sample: CountOrZero = 50
    seed: Seed = 0
    time_limit: Positive = 30.0


def verify(
    network: nn.Module,
    path: str,
    data: Data,
    config: VerifyConfig,
    reporter: Reporter | None = None,
) -> list[Finding]:
    """Check randomly chosen certificates of a file, and all its counterexamples.

    Args:
        network: the network of the file.
        path: the certificate file.
        data: images in [0, 1] and true classes of the file's rows, in their order.
        config: the settings.
        reporter: receives progress.

    Raises:
        InputError: the path is not a certificate file, the network or the samples are not the file's own, or the file
            has no rows yet.
    """
    model = network
    certificates, reporter = read(path), reporter or Reporter()
    indices = indices_of(certificates)
    with torch.inference_mode(False), eval_mode(model), trusted_arithmetic():
        _check_origin(certificates, "network", "model_sha256", weights_sha256(model))
        _check_origin(certificates, "structure", "structure_sha256", structure_sha256(model))
        program = Program(model)
        samples = validate(model, replace(data, indices=torch.as_tensor(indices)), reporter, program.hold)
        _check_origin(certificates, "set of samples", "data_sha256", samples.data_sha256)
        chosen = _chosen(certificates, config.sample, np.random.default_rng(config.seed))
        reporter.start("verify", sum(map(len, chosen.values())), 0)
        findings = []
        for name, rows in certificates.methods.items():
            findings.append(_plain_columns(rows, samples))
            if "counterexample" in _columns(path, name):
                findings.append(_counterexamples(program.module, path, rows, samples))
            if certifies(name):
                findings.append(_proofs(program, rows, samples, chosen.get(name), config.time_limit, reporter))
        reporter.finish("verify")
    return [finding for finding in findings if finding.claims]


def indices_of(certificates: Certificates) -> np.ndarray:
    """Return the index of each row's sample, from the first method that has finished the row.

    Raises:
        InputError: no method has an answer for some row.
    """
    methods = list(certificates.methods.values())
    done = [rows["status"] != Status.PENDING for rows in methods]
    indices: np.ndarray = np.select(done, [rows["index"] for rows in methods], -1)
    missing = int((indices < 0).sum())
    if missing:
        raise InputError(
            f"{certificates.path} is not finished: no method has an answer for {missing} of {len(indices)} samples; "
            "run the same command again to finish it"
        )
    return indices


def _columns(path: str, method: str) -> set[str]:
    with opened(path) as file:
        return set(file[method])


def _check_origin(certificates: Certificates, what: str, attribute: str, found: str) -> None:
    """Check that a hash in the file is that of the given network or samples."""
    stored = str(certificates.attributes.get(attribute, ""))
    if stored != found:
        raise InputError(
            f"{certificates.path} is about another {what} ({attribute} {stored[:16] or 'unknown'}, "
            f"not {found[:16]}): name what it was made from"
        )


def _chosen(certificates: Certificates, sample: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Choose certified rows that can be proved again, ``sample`` in total over all methods."""
    claims = [
        (name, row)
        for name, rows in certificates.methods.items()
        if _refusal(rows) is None
        for row in np.flatnonzero((rows["status"] == Status.CERTIFIED) & _has_radius(rows))
    ]
    few = sorted(random.permutation(len(claims))[:sample])
    return {name: np.array([claims[i][1] for i in few if claims[i][0] == name], int) for name in certificates.methods}


def _refusal(rows: MethodRows) -> str | None:
    """Return the reason why a method's claims cannot be proved here, or None."""
    if not proves(rows.name):
        return "its claims are about the smoothed network, by votes of its own random copies"
    if find(rows.name).about is About.PAIR:
        return "its claims are about two networks"
    return None


def _has_radius(rows: MethodRows) -> np.ndarray:
    radius = rows["radius"]
    return (radius > 0) & (radius < np.inf)


def _plain_columns(rows: MethodRows, samples: Samples) -> Finding:
    """Check the columns that follow from the network, the labels and the other columns of a finished row."""
    name = "base" if "base" in rows.columns else "predicted"
    done, labels, status = rows["status"] != Status.PENDING, samples.labels.numpy(), rows["status"]
    correct = (rows["predicted"] == labels) & (samples.finite.numpy() | (name == "base"))
    certified = (rows["correct"] == 1) & (rows["radius"] >= rows.eps)
    problems = {
        "it is another sample": rows["index"] != samples.indices.numpy(),
        "the network predicts another class": rows[name] != samples.predicted.numpy(),
        "its true class is another": rows["label"] != labels,
        "it is not correct where the prediction is right, or the reverse": (rows["correct"] == 1) != correct,
        "it is certified and misclassified": (status == Status.CERTIFIED) & ~correct,
        "it has no radius and is certified, or the reverse": np.where(
            status == Status.CERTIFIED, ~_has_radius(rows), rows["radius"] != 0
        ),
        "certified at eps is not what its radius says": (rows["certified"] == 1) != certified,
    }
    found = Finding(rows.name, int(done.sum()), int(done.sum()), remark="predictions and what follows from columns")
    wrong = done & np.any(list(problems.values()), axis=0)
    for i in np.flatnonzero(wrong):
        what = next(problem for problem, broken in problems.items() if broken[i])
        found.contradictions.append(f"{rows.name}, sample {samples.indices[i]}: {what}")
    found.again = found.asked - int(wrong.sum())
    return found


def _counterexamples(model: nn.Module, path: str, rows: MethodRows, samples: Samples) -> Finding:
    """Check that every stored counterexample is in the ball and the image box, and gets another class."""
    found = Finding(rows.name, rows.count(Status.FALSIFIED), remark="counterexamples")
    for block in _blocks(np.flatnonzero(rows["status"] == Status.FALSIFIED)):
        stored = torch.from_numpy(read_images(path, rows.name, "counterexample", block)).to(device_of(model))
        x = samples.batch(block, device_of(model))
        distance = norms(stored.double() - x.double(), Norm(rows.attributes["norm"])).cpu().numpy()
        with torch.no_grad():
            logits = model(stored)
        margin = margins(logits, samples.predicted[block].to(stored.device)).cpu().numpy()
        slack = LOGIT_ROUNDING * logits.abs().amax(1).clamp_min(1.0).cpu().numpy()
        problems = {
            "is outside the ball": ~(distance <= rows.eps),
            "is outside the image box": ~((stored >= 0) & (stored <= 1)).flatten(1).all(1).cpu().numpy(),
            "is classified right": ~(margin < slack),
            "is at another distance": ~np.isclose(distance, rows["distance"][block], rtol=ROUNDING),
        }
        bad = np.any(list(problems.values()), axis=0)
        for i in np.flatnonzero(bad):
            what = next(name for name, broken in problems.items() if broken[i])
            found.contradictions.append(f"{rows.name}, sample {rows['index'][block[i]]}: its counterexample {what}")
        found.asked, found.again = found.asked + len(block), found.again + int((~bad & (margin < 0)).sum())
    return found


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _proofs(
    program: Program,
    rows: MethodRows,
    samples: Samples,
    chosen: np.ndarray | None,
    time_limit: float,
    reporter: Reporter,
) -> Finding:
    """Attack certificates and prove them again, each at its own radius."""
    found = Finding(rows.name, rows.count(Status.CERTIFIED), remark=_refusal(rows) or "certificates")
    if chosen is None or not len(chosen):
        return found
    stages: list[Stage] = []
    try:
        prover = _prover(program, rows, samples, time_limit)
        for row in chosen:
            answer = _answer(prover, samples, int(row), float(rows["radius"][row]))
            found.asked += 1
            if answer["status"] == Status.CERTIFIED:
                found.again += 1
                stages.append(Stage(int(answer["stage"])))
            if answer["status"] == Status.FALSIFIED:
                found.contradictions.append(
                    f"{rows.name}, sample {rows['index'][row]}: a point at distance {answer['distance']:.6g} changes "
                    f"the prediction, its certified radius is {rows['radius'][row]:.6g}"
                )
            reporter.advance(1)
    except Contradiction as error:  # known facts about the network exclude each other: no answer about it counts
        found.asked, found.again, found.remark = found.asked + 1, 0, str(error)
        found.contradictions.append(f"{rows.name}: {error}")
        return found
    except Unsupported as error:
        found.remark = str(error)
        return found
    counts = ", ".join(f"{stages.count(stage)} by {stage.title}" for stage in Stage if stage in stages)
    found.remark = f"certificates: {counts}; IBP and CROWN by {prover.screen.name}" if counts else found.remark
    return found


def _prover(program: Program, rows: MethodRows, samples: Samples, time_limit: float) -> Prover:
    """Prepare complete verification, preferring the engine that did not write the rows."""
    written_by = str(rows.attributes.get("engine", ""))
    others: tuple[Literal["native", "auto-lirpa"], ...] = (
        ("native",) if written_by == "auto-lirpa" else ("auto-lirpa", "native")
    )
    arithmetic = parse_arithmetic(str(rows.attributes.get("arithmetic")))
    question = Question(Epsilon.parse(float(rows.eps)), Norm(rows.attributes["norm"]), seed=1, arithmetic=arithmetic)
    first = first_images(samples, program.given)
    reasons = []
    for engine in others:
        settings = Complete(time_limit=time_limit, restarts=4, engine=engine)
        try:
            return Prover.prepare(program, first, question, settings)
        except Unsupported as error:
            reasons.append(str(error))
    raise Unsupported("; ".join(reasons))


def _answer(prover: Prover, samples: Samples, row: int, radius: float) -> dict[str, Any]:
    """Verify one sample at a radius."""
    eps = Epsilon.parse(radius)
    (answer,) = prover.at(eps)(Asked(prover.program, samples).batch(np.array([row])))
    return {name: values[0] for name, values in answer.columns.items()}


def contradictions(findings: Sequence[Finding]) -> list[str]:
    """Return all contradictions, a line each."""
    return [line for finding in findings for line in finding.contradictions]
