"""Choose the methods that two certificate files are compared by, and refuse what cannot be compared.

Methods are known by their properties (guarantee, what they are about, columns), never by name.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from os.path import samefile
from pathlib import Path
from typing import Any

import numpy as np

from verifiers.certify.audit.consistency import (
    broken_rows,
    lines_of,
    lowest_attacked,
    nearest_counterexample,
    pair_problems,
)
from verifiers.certify.audit.meaning import disagreements, identity_of, mixed_rows, refuse_absurd
from verifiers.certify.audit.relations import relation_to_teacher
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import DEPLOYED, Epsilon
from verifiers.core.status import FAILURES, About, Guarantee, Status
from verifiers.core.table import counted
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.rows import Certificates, MethodRows

#: Attributes that two files must share; the value of eps is checked too. Arithmetics may differ if both are those of
#: the networks as they run.
SHARED = ("data_sha256", "indices_sha256", "norm", "arithmetic")
#: Settings that may differ: the precision in which a network votes is a property of the network.
OWN = ("dtype",)


def attacks(certificates: Certificates) -> list[MethodRows]:
    """Return the rows of the attacks on the network itself: estimates with the distance of counterexamples."""
    return list(_rows(certificates, Guarantee.ESTIMATE, About.NETWORK, "distance"))


def falsifying(certificates: Certificates) -> list[MethodRows]:
    """Return the rows that can hold counterexamples to the network itself: of attacks and of complete verification."""
    return [rows for rows in certificates if find(rows.name).about is About.NETWORK and "distance" in rows.columns]


def transfer(certificates: Certificates) -> MethodRows | None:
    """Return the rows that say which of the teacher's certificates carry over, and what blocks the others."""
    return next(_rows(certificates, Guarantee.DETERMINISTIC, About.PAIR, "blocker"), None)


def diagnosis(certificates: Certificates) -> MethodRows | None:
    """Return the rows that compare the input gradients of student and teacher."""
    return next(_rows(certificates, Guarantee.ESTIMATE, About.PAIR, "gradient_cosine"), None)


def relation(certificates: Certificates) -> MethodRows | None:
    """Return the rows that relate student and teacher on whole balls."""
    return next((rows for rows in certificates if find(rows.name).relational), None)


def _rows(certificates: Certificates, guarantee: Guarantee, about: About, column: str) -> Iterator[MethodRows]:
    for rows in certificates:
        method = find(rows.name)
        if (method.guarantee, method.about) == (guarantee, about) and column in rows.columns:
            yield rows


def check_types(*given: object) -> None:
    """Refuse what is no Certificates, such as the path of a file.

    Raises:
        InputError: it names the type.
    """
    wrong = next((type(one).__name__ for one in given if not isinstance(one, Certificates)), None)
    if wrong is not None:
        raise InputError(f"compare takes certificates, got {wrong}: certkd.read_certificates(path) reads a file")


def check_known(certificates: Certificates) -> None:
    """Refuse rows of a method that this certkd does not have: a guarantee is never read from a file.

    Raises:
        InputError: it names the file and the method.
    """
    for rows in certificates:
        try:
            find(rows.name)
        except InputError as error:
            raise InputError(f"{certificates.path}: {error}") from None


def check_same(teacher: Certificates, student: Certificates) -> None:
    """Refuse unfinished files, files with different samples, norms or radii, and files that contradict themselves.

    Raises:
        InputError: it names both files and the first difference.
    """
    for certificates in (teacher, student):
        refuse_absurd(certificates)
        if certificates.pending:
            raise InputError(
                f"{certificates.path} is not finished ({counted(certificates.pending, 'row')} pending): "
                "run its certify command again"
            )
    both = f"{student.path} and {teacher.path} cannot be compared"
    if student.attributes.get("imported", False) != teacher.attributes.get("imported", False):
        raise InputError(f"{both}: one was imported from a log, which does not hold its images")
    sizes = [certificates.attributes.get("samples") for certificates in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{both}: they hold {sizes[0]} and {sizes[1]} samples; certify both networks on the same ones")
    for name in SHARED:
        ours, theirs = student.attributes.get(name), teacher.attributes.get(name)
        if ours != theirs and not (name == "arithmetic" and {ours, theirs} <= set(DEPLOYED)):
            raise InputError(f"{both}: they differ in {name} ({_short(ours)} and {_short(theirs)})")
    if student.eps != teacher.eps:
        raise InputError(f"{both}: eps is {student.eps_text} and {teacher.eps_text}")
    for certificates in (teacher, student):
        for line in chain(disagreements(certificates), mixed_rows(certificates), broken_rows(certificates)):
            raise InputError(f"{certificates.path} contradicts itself: {line}; certify it again")
    _check_pair(teacher, student, both)
    _check_claims_about_teacher(teacher, student)


def _check_pair(teacher: Certificates, student: Certificates, both: str) -> None:
    """Refuse a file and itself, rows that do not belong together, and a student in the place of its teacher.

    Raises:
        InputError: it names both files.
    """
    first, second = identity_of(student), identity_of(teacher)
    same_place = Path(student.path).exists() and Path(teacher.path).exists() and samefile(student.path, teacher.path)
    if same_place or (first.get("model_sha256") and first == second):
        raise InputError(f"{both}: they are one file; give those of two networks")
    ours, theirs = next(iter(student)), next(iter(teacher))
    for name in ("index", "label"):
        if not np.array_equal(ours[name], theirs[name]):
            raise InputError(f"{both}: their rows differ in {name}, so they are about other samples")
    known = teacher.attributes.get("teacher_sha256")
    if known and known == student.attributes.get("model_sha256") != teacher.attributes.get("model_sha256"):
        raise InputError(f"{teacher.path} is about a student of the network of {student.path}: give the teacher first")


def _check_claims_about_teacher(teacher: Certificates, student: Certificates) -> None:
    """Refuse rows about the teacher that its own file contradicts.

    Raises:
        InputError: it names both files and the first such row.
    """
    about = [rows for rows in student if find(rows.name).about is About.PAIR and proves(rows.name)]
    if not about or not same_teacher(teacher, student):
        return
    lowest = lowest_attacked(student)
    nearest = nearest_counterexample(teacher), nearest_counterexample(student)
    for rows in about:
        relational = find(rows.name).relational
        found = (
            relation_to_teacher(teacher, student, rows, nearest) if relational else pair_problems(teacher, rows, lowest)
        )
        for line in lines_of(rows, found):
            raise InputError(f"{student.path} contradicts {teacher.path}: {line}; certify both again")


def same_teacher(teacher: Certificates, student: Certificates) -> bool:
    """Return whether the teacher in the student's rows is this file's network."""
    names = (("model_sha256", "joint_teacher_sha256"), ("structure_sha256", "joint_teacher_structure_sha256"))
    known = [(teacher.attributes.get(own), student.attributes.get(other)) for own, other in names]
    return all(own and own == other for own, other in known)


def common_methods(files: Sequence[Certificates], method: str | Sequence[str]) -> list[str]:
    """Choose the methods to compare files by: all common proofs, or one method that holds with confidence 1 - alpha.

    Args:
        files: one or more, which all have the methods.
        method: "best", a name, or the names of several proofs.

    Raises:
        InputError: no such method in all files; different settings; rows without an answer.
    """
    names = [rows.name for rows in files[0] if certifies(rows.name) and all(rows.name in file for file in files[1:])]
    every = "both files" if len(files) == 2 else "all files"
    if method != "best":
        wanted = [method] if isinstance(method, str) else list(method)
        for name in wanted:
            if name not in names:
                hint = did_you_mean(name, ["best", *names])
                raise InputError(f"no certificate method {name!r} in {every}.{hint}")
        names = wanted
    names = [name for name in names if find(name).about is not About.PAIR]  # radii about two networks
    names = [name for name in names if not any(c[name].count(Status.UNSUPPORTED) for c in files)]
    if not names:
        paths = " and ".join(str(file.path) for file in files)
        if len(files) == 1:
            raise InputError(f"{paths} has no certificate of a network by itself: certify with a method like crown")
        raise InputError(f"{paths} have no certificate method with an answer in common")
    names = [name for name in names if proves(name)] or names[:1]
    for other in files[1:]:
        _check_settings(files[0], other, names)
    for certificates in files:
        for name in names:
            _check_answered(certificates, certificates[name])
    return names


def restated(certificates: Certificates, eps: Epsilon) -> Certificates:
    """State the certified radii of a file at another radius.

    Attacks and rows about a pair are left out, and methods that decide at the file's eps alone.

    Raises:
        InputError: no method is left.
    """
    kept = {}
    for rows in certificates:
        method = find(rows.name)
        alone = method.at_eps_alone or settings_of(certificates)[rows.name].get("question") == "eps"
        if certifies(rows.name) and method.about is not About.PAIR and not alone:
            certified = (rows["correct"] == 1) & (rows["radius"] >= eps.value)
            kept[rows.name] = replace(
                rows,
                attributes={**rows.attributes, "eps": eps.value, "eps_text": eps.text},
                columns={**rows.columns, "certified": certified.astype(rows["certified"].dtype)},
            )
    if not kept:
        raise InputError(
            f"{certificates.path} says nothing at eps {eps}: its methods ({', '.join(certificates.methods)}) decide at "
            f"eps {certificates.eps_text} alone; certify at eps {eps}"
        )
    return Certificates({**certificates.attributes, "eps_text": eps.text}, kept, certificates.path)


def settings_of(certificates: Certificates) -> dict[str, dict[str, Any]]:
    """Return the settings that each method ran with."""
    return dict(json.loads(str(certificates.attributes["settings"])))


def _check_answered(certificates: Certificates, rows: MethodRows) -> None:
    failed = {status.name: rows.count(status) for status in FAILURES}
    if any(failed.values()):
        counts = ", ".join(f"{count} {status}" for status, count in failed.items() if count)
        raise InputError(f"{certificates.path}: rows of {rows.name} have no answer ({counts}); certify it again")


def _check_settings(teacher: Certificates, student: Certificates, names: Sequence[str]) -> None:
    """Refuse different settings of the methods compared, and of the attacks if their accuracy is shown too."""
    ran = [rows.name for rows in attacks(teacher) if rows.name in student] if proves(names[0]) else []
    for name in [*names, *ran]:
        ours, theirs = (settings_of(certificates)[name] for certificates in (student, teacher))
        different = [key for key in {**theirs, **ours} if key not in OWN and ours.get(key) != theirs.get(key)]
        if different:
            values = ", ".join(f"{key} {theirs.get(key)} and {ours.get(key)}" for key in different)
            raise InputError(f"the files ran {name} with different settings: {values}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"
