"""Check the columns that follow from the network, the labels and other columns, in every row."""

from verifiers.certify.audit.consistency import problems_of
from verifiers.certify.audit.findings import Finding, marked
from verifiers.certify.audit.subject import Subject
from verifiers.core.status import About, Status
from verifiers.methods.registry import find
from verifiers.results.rows import MethodRows


def check_columns(subject: Subject, rows: MethodRows) -> Finding:
    """Check all finished rows of a method."""
    smoothed, samples = find(rows.name).about is About.SMOOTHED, subject.samples
    labels, predicted = samples.labels.numpy(), samples.predicted.numpy()
    correct = (rows["predicted"] == labels) & (samples.finite.numpy() | smoothed)
    problems = {
        "it is another sample": rows["index"] != samples.indices.numpy(),
        "the network predicts another class": rows["base" if smoothed else "predicted"] != predicted,
        "its true class is another": rows["label"] != labels,
        "it is not correct where the prediction is right, or the reverse": (rows["correct"] == 1) != correct,
        **problems_of(subject.certificates, rows, subject.pixels),
    }
    what = "predictions and what follows from columns"
    return marked(rows, rows["status"] != Status.PENDING, problems, what, samples.indices.numpy())
