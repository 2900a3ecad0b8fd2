"""Check the columns that follow from the network, the labels and other columns, in every row."""

import numpy as np

from verifiers.certify.audit.findings import Finding, marked
from verifiers.certify.audit.meaning import method_of, nearest_counterexample, row_problems
from verifiers.certify.audit.subject import Subject
from verifiers.core.errors import InputError
from verifiers.core.status import FAILURES, About, Status
from verifiers.methods.registry import find, proves
from verifiers.results.rows import MethodRows


def check_columns(subject: Subject, rows: MethodRows) -> Finding:
    """Check all finished rows of a method."""
    smoothed, samples = find(rows.name).about is About.SMOOTHED, subject.samples
    status, labels, predicted = rows["status"], samples.labels.numpy(), samples.predicted.numpy()
    correct = (rows["predicted"] == labels) & (samples.finite.numpy() | smoothed)
    wrong = np.isin(status, (Status.MISCLASSIFIED, *FAILURES)) | smoothed
    inside = rows["radius"] >= nearest_counterexample(subject.certificates)
    problems = {
        "it is another sample": rows["index"] != samples.indices.numpy(),
        "the network predicts another class": rows["base" if smoothed else "predicted"] != predicted,
        "its true class is another": rows["label"] != labels,
        "it is not correct where the prediction is right, or the reverse": (rows["correct"] == 1) != correct,
        "its radius contains a counterexample of the file": inside & np.bool_(proves(rows.name)),
        **row_problems(rows),
        "it is wrong and has an answer": ~correct & ~wrong,
        **_own_problems(subject, rows),
    }
    what = "predictions and what follows from columns"
    return marked(rows, status != Status.PENDING, problems, what, samples.indices.numpy())


def _own_problems(subject: Subject, rows: MethodRows) -> dict[str, np.ndarray]:
    """Mark what the method itself says about its columns."""
    answered = ~np.isin(rows["status"], [Status.PENDING, *(one for one in FAILURES if one is not Status.TIMEOUT)])
    try:
        method = method_of(subject.certificates, rows.name)
    except InputError as error:
        return {str(error): answered}
    found = method.problems(rows, subject.certificates.path, subject.pixels)
    return {words: broken & answered for words, broken in found.items()}
