"""One certificate file as tables."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from certkd.comparison.methods import attacks, check_known, same_teacher
from certkd.comparison.outcomes import at_eps, outcomes
from verifiers.core.quantities import parse_arithmetic
from verifiers.core.statistics import wilson
from verifiers.core.status import About, Status
from verifiers.core.table import Facts, Part, Table, counted
from verifiers.methods.registry import certifies, find
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.match import Matched


def contents(certificates: Certificates) -> list[Part]:
    """Tabulate a file: per method the count at eps, accuracy, mean radius and time, then its rows by status.

    Nothing for a file with rows about a pair alone that say nothing of a prediction: their summary says it all.
    """
    check_known(certificates)
    if all(find(rows.name).relational for rows in certificates):
        return []
    lines = []
    for rows in certificates:
        found = at_eps(rows)
        count, accuracy = ("-", "-") if found is None else (str(found.samples), str(found))
        count = str(rows.at_eps) if find(rows.name).relational else count  # no accuracy
        radius = f"{np.mean(rows['radius']):.4f}" if found is not None and found.proved else "-"
        seconds = f"{np.nanmean(rows['seconds']):.4f}" if np.isfinite(rows["seconds"]).any() else "-"
        lines.append([rows.name, count, accuracy, radius, seconds, find(rows.name).guarantee.value])
    samples = counted(int(certificates.attributes["samples"]), "sample")
    title = f"{certificates.norm} ball, eps {certificates.eps_text} (pixels in [0, 1]), {samples}"
    columns = ["method", "at eps", "accuracy", "mean radius", "time, s", "guarantee"]
    return [Table(title, columns, lines), _by_status(certificates)]


def answer(certificates: Certificates) -> list[str]:
    """Say in one sentence how many samples are certified, or what an attack left of them.

    Nothing for rows about a pair alone, or without a proof or an attack.
    """
    check_known(certificates)
    alone = [rows for rows in certificates if find(rows.name).about is not About.PAIR]
    proved = any(certifies(rows.name) for rows in alone)
    if not proved and not attacks(certificates):
        return []
    counts, samples = outcomes([certificates]), int(certificates.attributes["samples"])
    start = f"At eps {certificates.eps_text} ({certificates.norm})"
    waiting = max(rows.count(Status.PENDING) for rows in alone)
    rest = f"; {counted(waiting, 'sample')} not asked yet" if waiting else ""
    if not proved:
        return [f"{start} an attack breaks {counts.get('falsified', 0)} of {counted(samples, 'sample')}{rest}."]
    share = wilson(counts.get("certified", 0), samples)
    limits = f"{share.value:.1%}, 95 % interval {share.low:.1%} to {share.high:.1%}"
    return [f"{start} {share.hits} of {counted(samples, 'sample')} are correct and certified ({limits}){rest}."]


def figures(certificates: Certificates) -> dict[str, Any]:
    """Return what a file says as plain values: per method the count at eps, accuracy, mean radius and statuses."""
    methods: dict[str, dict[str, Any]] = {}
    for rows in certificates:
        found = at_eps(rows)
        methods[rows.name] = {
            "guarantee": find(rows.name).guarantee.value,
            "at_eps": None if found is None else found.samples,
            "accuracy": None if found is None else found.share,
            "mean_radius": float(np.mean(rows["radius"])) if found is not None and found.proved else None,
            "statuses": {status.name: rows.count(status) for status in Status if rows.count(status)},
        }
        if find(rows.name).relational:
            methods[rows.name] |= {"at_eps": rows.at_eps, **Matched.of(rows, certificates).to_dict()}
    about = {"path": certificates.path, "norm": certificates.norm, "eps": certificates.eps_text}
    return {**about, "samples": int(certificates.attributes["samples"]), "methods": methods}


def _by_status(certificates: Certificates) -> Table:
    """Count the rows of each method by the statuses that occur. CERTIFIED is a radius above 0, whatever eps is."""
    counts = {rows.name: {status: rows.count(status) for status in Status} for rows in certificates}
    shown = [status for status in Status if any(count[status] for count in counts.values())]
    names = ["radius > 0" if status is Status.CERTIFIED else _words(status) for status in shown]
    lines = [[name, *(str(count[status]) for status in shown)] for name, count in counts.items()]
    return Table("Rows by status", ["method", *names], lines)


def _words(status: Status) -> str:
    return status.name.lower().replace("_", " ")


def summaries(certificates: Certificates, about: Collection[About] = tuple(About)) -> list[Part]:
    """Return the tables and sentences of the methods about one network, a smoothed one or a pair."""
    parts: list[Part] = []
    for rows in certificates:
        method = find(rows.name)
        refused = rows.count(Status.UNSUPPORTED)
        ran = refused < len(rows) if method.relational else not refused
        if method.summary is not None and method.about in about and ran:
            parts += method.summary(rows, certificates)
    return parts


def pair_summaries(teacher: Certificates, student: Certificates) -> list[Part]:
    """Return the summaries of the student's methods about a pair, if the teacher of the pair is this one."""
    return summaries(student, [About.PAIR]) if same_teacher(teacher, student) else []


def instances(files: Sequence[Certificates]) -> str:
    """Say how many instances of a list are settled, over the files of all its radii, and how."""
    counts = outcomes(files)
    radii = f"at {len(files)} radii" if len(files) > 1 else f"at eps {files[0].eps_text}"
    return f"{sum(counts.values())} instances {radii}: {', '.join(f'{n} {name}' for name, n in counts.items())}"


def facts(certificates: Certificates) -> Facts:
    """Describe where a file's rows come from."""
    attributes = certificates.attributes
    settings = json.loads(str(attributes["settings"]))
    said = "; ".join(f"{method} {_settings(one)}" for method, one in settings.items())
    rows = [
        *_origin(attributes),
        ("data", f"{attributes.get('data') or 'given as arrays'}  sha256 {attributes['data_sha256']}"),
        *_arithmetic(attributes),
        ("settings", f"{said}  seed {attributes['seed']}"),
    ]
    return Facts(rows + [fact for rows in certificates for fact in _notes(rows)])


def _arithmetic(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """State the arithmetic of the proofs; imported rows have none."""
    if "arithmetic" not in attributes:
        return []
    arithmetic = parse_arithmetic(str(attributes["arithmetic"]))
    return [("arithmetic", f"{arithmetic.label}: {arithmetic.meaning}")]


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "none"


def _notes(rows: MethodRows) -> list[tuple[str, str]]:
    engine = f", engine {rows.attributes['engine']}" if "engine" in rows.attributes else ""
    remarks = ("reason", "passed_over", "cross_check", "radii", "doubt")
    found = [("", str(rows.attributes[remark])) for remark in remarks if remark in rows.attributes]
    return [(rows.name, f"{rows.attributes['claim']}{engine}"), *found]


#: The attributes that name the teacher that a network learnt from, and the one that rows about a pair compare with.
_TEACHERS = ("teacher_sha256", "joint_teacher_sha256")


def _origin(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the certified network and the program, or the log of another program."""
    if attributes.get("imported"):
        by = f"certkd {attributes['certkd_version']}, numpy {attributes['numpy_version']}, at {attributes['started']}"
        return [("log", f"{attributes['log']}  sha256 {attributes['log_sha256']}"), ("read by", by)]
    versions = f"torch {attributes['torch_version']}, auto-LiRPA {attributes['auto_lirpa_version']}"
    return [
        ("model", f"{attributes['architecture']}  sha256 {attributes['model_sha256']}"),
        *(("teacher", f"sha256 {found}") for found in dict.fromkeys(map(attributes.get, _TEACHERS)) if found),
        (
            "made by",
            f"certkd {attributes['certkd_version']}, {versions}, on {attributes['device']} at {attributes['started']}",
        ),
        ("command", str(attributes["command"])),
    ]
