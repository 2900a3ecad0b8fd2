"""Look at stored rows of methods whose rows are not computed again: each says itself how."""

from dataclasses import replace

import numpy as np

from verifiers.certify.answers import Asked
from verifiers.certify.audit.findings import Finding, marked
from verifiers.certify.audit.subject import Subject, blocks
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.status import FAILURES, Status
from verifiers.methods.registry import find
from verifiers.results.reader import read_images
from verifiers.results.rows import MethodRows
from verifiers.runtime.certifier import Recounts
from verifiers.runtime.samples import first_images


def recount(subject: Subject) -> list[Finding]:
    """Look at the chosen rows of every such method."""
    methods = [rows for rows in subject.certificates if not find(rows.name).runs_again]
    return [_recounted(subject, rows) for rows in methods]


def _recounted(subject: Subject, rows: MethodRows) -> Finding:
    method = subject.method(rows.name)
    answered = ~np.isin(rows["status"], [Status.PENDING, *FAILURES])
    chosen = subject.chosen[answered[subject.chosen]]
    config = subject.config(method)
    asked, problems = np.zeros(len(rows), bool), dict[str, np.ndarray]()
    remark = "votes counted again on the same copies, and on fresh ones"
    try:
        own = replace(subject.question(), seed=config.seed, teacher=None)
        certifier = method.prepare(subject.program, first_images(subject.samples, subject.program.given), own)
        if not isinstance(certifier, Recounts):
            raise TypeError(f"{rows.name} has rows that do not run again, and no recount")
        batches = Asked(subject.program, subject.samples)
        for block in blocks(chosen):
            asked[block] = True
            for words, mask in certifier.recount(
                batches.batch(block), _stored(subject, rows, block), subject.seed, len(chosen)
            ).items():
                problems.setdefault(words, np.zeros(len(rows), bool))[block] = mask
        failed = np.isin(rows["status"], (Status.ERROR, Status.UNSUPPORTED)) & subject.samples.finite.numpy()
        for block in blocks(subject.chosen[failed[subject.chosen]]):
            certifier.recount(batches.batch(block), _stored(subject, rows, block), subject.seed, len(chosen) + 1)
            asked[block] = True
            problems["it has no answer, and its copies vote when they are counted again"] = failed & asked
    except (Unsupported, Contradiction) as error:
        remark = str(error)
    found = marked(rows, asked, problems, remark, rows["index"])
    found.claims = int((answered | asked).sum())
    return found


def _stored(subject: Subject, rows: MethodRows, block: np.ndarray) -> dict[str, np.ndarray]:
    """Return all columns of some rows."""
    own = {column.name: column for column in find(rows.name).columns}
    columns = {name: rows[name][block] for name in rows.columns}
    more = {
        name: read_images(subject.certificates.path, rows.name, name, block)
        for name, column in own.items()
        if column.axes and name not in columns
    }
    return {**columns, **more}
