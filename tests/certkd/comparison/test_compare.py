"""Comparing two certificate files: against literal loops, and what cannot be compared."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import certkd
from certkd.comparison.compare import Comparison, compare, figures, radii
from certkd.comparison.methods import check_types
from certkd.comparison.requirement import Requirement
from certkd.comparison.statistics import QUANTILES, paired
from tests.certificate_files import Content, write_file
from tests.certifying import certify
from verifiers.core.errors import InputError
from verifiers.core.statistics import mcnemar
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.rows import Certificates

EPS = 0.1


def columns(correct: np.ndarray, status: np.ndarray, radius: np.ndarray) -> dict[str, np.ndarray]:
    """Common columns of one method; the index is not the row number."""
    count = len(correct)
    return {
        "index": 100 + 3 * np.arange(count),
        "label": np.zeros(count, np.int64),
        "predicted": np.where(correct, 0, 1),
        "correct": correct.astype("uint8"),
        "radius": radius,
        "margin": np.zeros(count),
        "certified": (correct & (radius >= EPS)).astype("uint8"),
        "seconds": np.zeros(count),
        "status": status.astype("uint8"),
    }


def proofs(correct: np.ndarray, radius: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of a certificate method."""
    certified = np.where(radius > 0, Status.CERTIFIED, Status.NOT_CERTIFIED)
    return columns(correct, np.where(correct, certified, Status.MISCLASSIFIED), np.where(correct, radius, 0.0))


def attack(correct: np.ndarray, falsified: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of PGD."""
    found = np.where(falsified, Status.FALSIFIED, Status.NOT_CERTIFIED)
    rows = columns(correct, np.where(correct, found, Status.MISCLASSIFIED), np.zeros(len(correct)))
    ends = {"margin": np.where(falsified, -1.0, 1.0), "distance": np.where(falsified, EPS, np.nan)}
    return {**rows, **{name: np.where(correct, values, np.nan) for name, values in ends.items()}}


def file(path: Path, content: Content, *, eps: Any = EPS, **changes: Any) -> Certificates:
    """A certificate file with these rows."""
    return write_file(path, content, eps=eps, **changes)


def random_content(seed: int, count: int = 60) -> dict[str, dict[str, np.ndarray]]:
    """Rows of all three methods; about a fifth misclassified, radii around eps and often exactly 0 or eps.

    Half of what has no certificate at eps is falsified there.
    """
    random = np.random.default_rng(seed)
    correct = random.random(count) < 0.8
    ibp, crown = (random.choice([0.0, 0.05, EPS, 0.13, 0.2], count) for _ in range(2))
    return {
        "pgd": attack(correct, (random.random(count) < 0.5) & (np.maximum(ibp, crown) < EPS)),
        "ibp": proofs(correct, ibp),
        "crown": proofs(correct, crown),
    }


def pair(folder: Path, *seeds: int, **changes: Any) -> list[Certificates]:
    """Files of several networks."""
    return [file(folder / f"{seed}.h5", random_content(seed), **changes) for seed in seeds]


def literal(teacher: Certificates, student: Certificates, methods: list[str]) -> dict[str, Any]:
    """The comparison by plain loops over the samples."""
    count = len(teacher[methods[0]])
    kept = had = full = 0
    gains, losses = [], []
    figures: dict[str, list[tuple[float, float]]] = {"clean": [], "pgd": [], "certified": [], "radius": []}
    for i in range(count):
        radius = {}
        for side, certificates in (("t", teacher), ("s", student)):
            radius[side] = max(float(certificates[m]["radius"][i]) for m in methods)
            if not certificates[methods[0]]["correct"][i]:
                radius[side] = 0.0
        both = [radius["s"] >= EPS, radius["t"] >= EPS]
        had += both[1]
        kept += both[0] and both[1]
        full += both[0] and both[1] and radius["s"] >= radius["t"]
        index = int(teacher[methods[0]]["index"][i])
        if both[0] and not both[1]:
            gains.append(index)
        if both[1] and not both[0]:
            losses.append(index)
        figures["certified"].append((both[0], both[1]))
        figures["radius"].append((radius["s"], radius["t"]))
        figures["clean"].append(tuple(float(c[methods[0]]["correct"][i]) for c in (student, teacher)))
        figures["pgd"].append(tuple(float(c["pgd"]["status"][i] == Status.NOT_CERTIFIED) for c in (student, teacher)))
    return {"kept": kept, "had": had, "full": full, "gains": gains, "losses": losses, "figures": figures}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["best", "ibp", "crown"])
@pytest.mark.thin(4)
def test_everything_equals_literal_loops(tmp_path: Path, seed: int, method: str) -> None:
    teacher, student = pair(tmp_path, seed, seed + 100)
    result = compare(teacher, student, method=method)
    expected = literal(teacher, student, ["ibp", "crown"] if method == "best" else [method])
    assert (result.retention.hits, result.retention.cases) == (expected["kept"], expected["had"])
    assert (result.radius_retention.hits, result.radius_retention.cases) == (expected["full"], expected["had"])
    assert (list(result.gains), list(result.losses)) == (expected["gains"], expected["losses"])
    assert result.gains and result.losses and expected["full"], "an empty case would test nothing"
    for name, values in expected["figures"].items():
        ours, theirs = (np.array([v[side] for v in values], float) for side in (0, 1))
        difference = result.differences[name]
        assert difference.mean == pytest.approx(float(np.mean(ours - theirs))), name
        assert difference.standard_error == pytest.approx(float(stats.sem(ours - theirs))), name
        attribute = "mean_radius" if name == "radius" else name
        assert getattr(result.student, attribute) == pytest.approx(ours.mean()), f"student's {name}"
        assert getattr(result.teacher, attribute) == pytest.approx(theirs.mean()), f"teacher's {name}"
    for side, number in ((result.student, 0), (result.teacher, 1)):
        radius = np.array([v[number] for v in expected["figures"]["radius"]])
        assert side.quantiles == pytest.approx(tuple(np.quantile(radius, QUANTILES)))
    assert (result.method, result.norm, result.eps, result.samples) == (method, "linf", "0.1", 60)


def test_paths_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"^compare takes certificates, got str: certkd\.read_certificates\("):
        check_types("teacher.h5", "student.h5")


def test_misclassified_samples_stay_in_the_denominator(tmp_path: Path) -> None:
    correct = np.array([True, False, False, False])
    content = {"pgd": attack(correct, np.zeros(4, bool)), "crown": proofs(correct, np.full(4, 0.2))}
    found = figures(file(tmp_path / "a.h5", content))
    assert (found.clean, found.pgd, found.certified) == (0.25, 0.25, 0.25)
    assert found.mean_radius == pytest.approx(0.05), "a misclassified sample has radius 0"
    assert radii(read(tmp_path / "a.h5")).tolist() == [0.2, 0, 0, 0]


def test_a_radius_equal_to_eps_is_certified(tmp_path: Path) -> None:
    content = {"crown": proofs(np.ones(2, bool), np.array([EPS, np.nextafter(EPS, 0)]))}
    assert figures(file(tmp_path / "a.h5", content)).certified == 0.5


def test_a_network_compared_with_itself_keeps_everything(tmp_path: Path) -> None:
    (teacher,) = pair(tmp_path, 3)
    result = compare(teacher, file(tmp_path / "again.h5", random_content(3)))
    assert result.retention.value == result.radius_retention.value == 1
    assert all(d.mean == 0 and d.standard_error == 0 for d in result.differences.values())
    assert result.gains == result.losses == ()
    assert result.teacher == result.student


def test_real_certificates_of_two_networks() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(30, 1, 2, 2), torch.arange(30) % 2
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    teacher, student = (certify(network, x, y, eps="0.01") for network in networks)
    result = compare(teacher, student)
    kept = (teacher["crown"]["certified"] | teacher["ibp"]["certified"]).astype(bool)
    assert result.retention.cases == int(kept.sum())
    assert "they are one file" in refusal(teacher, teacher)


def test_comparing_in_python_twice() -> None:
    from certkd.comparison import compare as module

    assert module.compare is compare
    assert certkd.compare is compare and certkd.compare is compare, "the submodule must not hide the function"


# statistics


def test_paired_differences() -> None:
    ours, theirs = np.array([1, 0, 1, 1]), np.array([0, 0, 1, 0])
    difference = paired(ours, theirs)
    assert difference.mean == 0.5
    assert difference.unpaired_error == pytest.approx(math.sqrt(1 / 4 / 4 + 1 / 4 / 4)), "both have variance 1/4"
    assert difference.standard_error == pytest.approx(math.sqrt(1 / 3) / 2), "sample deviation of 1 0 0 1 over root 4"
    single = paired(np.ones(1), np.ones(1))
    assert math.isnan(single.standard_error) and math.isnan(single.unpaired_error), "one sample has no spread"


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_counted_by_loops(tmp_path: Path, seed: int) -> None:
    teacher, student = pair(tmp_path, seed, seed + 50)
    result = compare(teacher, student)
    ours, theirs = radii(student), radii(teacher)
    shown = [at.radius for at in result.curve]
    assert shown == [0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2], (
        "round numbers up to the largest, 0.2, and eps"
    )
    for at in result.curve:
        counts = {"both": 0, "gains": 0, "losses": 0}
        for s, t in zip(ours, theirs, strict=True):
            kept, had = s > 0 and s >= at.radius, t > 0 and t >= at.radius
            counts["both"] += kept and had
            counts["gains"] += kept and not had
            counts["losses"] += had and not kept
        assert (at.gains, at.losses) == (counts["gains"], counts["losses"]), at.radius
        assert at.student == pytest.approx((counts["both"] + at.gains) / 60)
        assert at.teacher == pytest.approx((counts["both"] + at.losses) / 60)
        assert at.retention == pytest.approx(counts["both"] / (counts["both"] + at.losses))
        assert at.mcnemar == mcnemar(at.gains, at.losses)
    at_eps = next(at for at in result.curve if at.radius == EPS)
    assert (at_eps.gains, at_eps.losses, at_eps.mcnemar) == (len(result.gains), len(result.losses), result.mcnemar)
    assert (at_eps.teacher, at_eps.student) == (result.teacher.certified, result.student.certified)


def test_a_curve_without_a_certificate_has_no_retention(tmp_path: Path) -> None:
    nothing = {"crown": proofs(np.ones(5, bool), np.zeros(5))}
    teacher, student = (file(tmp_path / f"{name}.h5", nothing) for name in "ab")
    result = compare(teacher, student)
    assert [at.radius for at in result.curve] == [0, EPS]
    assert all(math.isnan(at.retention) and at.teacher == at.student == 0 and at.mcnemar == 1 for at in result.curve)


def test_samples_that_an_attack_did_not_finish_are_not_falsified(tmp_path: Path) -> None:
    content = random_content(3)
    correct = content["pgd"]["status"] != Status.MISCLASSIFIED
    broken = content["pgd"]["status"] == Status.FALSIFIED
    late = np.flatnonzero(~broken & correct)[:5]
    content["pgd"]["status"][late] = Status.TIMEOUT
    side = figures(file(tmp_path / "some.h5", content))
    assert side.pgd == np.mean(correct & ~broken) >= side.certified, "an upper limit"
    content["pgd"]["status"][:] = Status.UNSUPPORTED
    for name in ("margin", "distance"):
        content["pgd"][name][:] = np.nan
    assert np.isnan(figures(file(tmp_path / "all.h5", content)).pgd), "an attack that never ran says nothing"


def test_without_an_attack_pgd_is_not_a_number(tmp_path: Path) -> None:
    content = {key: value for key, value in random_content(1).items() if key != "pgd"}
    teacher, student = file(tmp_path / "a.h5", content), file(tmp_path / "b.h5", random_content(2))
    result = compare(teacher, student)
    assert math.isnan(result.teacher.pgd) and math.isnan(result.differences["pgd"].mean)
    assert not math.isnan(result.student.pgd)


def test_the_comparison_is_plain_json(tmp_path: Path) -> None:
    nothing = {"crown": proofs(np.ones(5, bool), np.zeros(5))}
    teacher, student = (file(tmp_path / f"{name}.h5", nothing) for name in "ab")
    result = compare(teacher, student)
    text = json.dumps(result.to_dict(), allow_nan=False)
    content = json.loads(text)
    assert content["retention"]["value"] is None, "not-a-number is null in JSON"
    assert content["metrics"]["clean"] == 1.0 and content["teacher"]["certified"] == 0.0


# what cannot be compared


def refusal(teacher: Certificates, student: Certificates, method: str = "best") -> str:
    """The one line that refuses a comparison."""
    with pytest.raises(InputError) as caught:
        compare(teacher, student, method=method)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_sha256": "other"}, "differ in data_sha256 (other and data)"),
        ({"indices_sha256": "other"}, "differ in indices_sha256"),
        ({"norm": "l2"}, "differ in norm (l2 and linf)"),
        ({"eps": "0.2"}, "eps is 0.2 and 0.1"),
        ({"settings": {"crown": {"tolerance": 1}}}, "ran crown with different settings: "),
        ({"settings": {"pgd": {"steps": 1}}}, "ran pgd with different settings: steps 30 and 1"),
    ],
)
@pytest.mark.thin(2)
def test_other_conditions_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (teacher,) = pair(tmp_path, 1)
    student = file(tmp_path / "student.h5", random_content(2), **change)
    message = refusal(teacher, student)
    assert words in message, message


def test_another_number_of_samples_is_refused(tmp_path: Path) -> None:
    (teacher,) = pair(tmp_path, 1)
    few = {name: {column: v[:5] for column, v in columns.items()} for name, columns in random_content(2).items()}
    assert "they hold 5 and " in refusal(teacher, file(tmp_path / "student.h5", few))


def test_unfinished_files_are_refused_and_named(tmp_path: Path) -> None:
    (teacher,) = pair(tmp_path, 1)
    content = random_content(2)
    content["crown"]["status"][-5:] = Status.PENDING
    student = file(tmp_path / "student.h5", content)
    for sides in ((teacher, student), (student, teacher)):
        message = refusal(*sides)
        assert "student.h5 is not finished (5 rows pending)" in message, message


@pytest.mark.parametrize("status", [Status.ERROR, Status.OUT_OF_MEMORY, Status.TIMEOUT])
@pytest.mark.thin(2)
def test_rows_without_an_answer_are_refused(tmp_path: Path, status: Status) -> None:
    (teacher,) = pair(tmp_path, 1)
    content = random_content(2)
    content["crown"]["status"][:2] = status
    content["crown"]["radius"][:2] = content["crown"]["certified"][:2] = 0
    student = file(tmp_path / "student.h5", content)
    message = refusal(teacher, student)
    assert f"rows of crown have no answer (2 {status.name})" in message, message
    assert compare(teacher, student, method="ibp").method == "ibp", "the other method has its answers"


def test_no_common_proof_is_refused(tmp_path: Path) -> None:
    first, second = random_content(1), random_content(2)
    ibp = file(tmp_path / "ibp.h5", {"pgd": first["pgd"], "ibp": first["ibp"]})
    crown = file(tmp_path / "crown.h5", {"pgd": second["pgd"], "crown": second["crown"]})
    assert "no certificate method" in refusal(ibp, crown)
    assert "no certificate method 'crown' in both files" in refusal(ibp, crown, "crown")
    other = file(tmp_path / "other.h5", {"pgd": first["pgd"], "crown": first["crown"]})
    message = refusal(crown, other, "crwn")
    assert "Did you mean 'crown'?" in message, message
    assert "'pgd'" in refusal(crown, other, "pgd"), "an attack has no radii"


def unsupported(content: dict[str, dict[str, np.ndarray]], method: str) -> dict[str, dict[str, np.ndarray]]:
    """The rows with a method that could not run."""
    rows = content[method]
    asked = rows["correct"].astype(bool)
    changed = {
        **rows,
        "status": np.where(asked, Status.UNSUPPORTED, rows["status"]).astype("uint8"),
        "radius": np.zeros(len(asked)),
        "certified": np.zeros(len(asked), "uint8"),
    }
    return {**content, method: changed}


@pytest.mark.parametrize("who", ["teacher", "student", "both"])
@pytest.mark.thin(2)
def test_a_method_that_could_not_run_is_left_out_and_never_counts_as_not_certified(tmp_path: Path, who: str) -> None:
    contents = {"teacher": random_content(1), "student": random_content(2)}
    whole = [file(tmp_path / f"{name}.h5", content) for name, content in contents.items()]
    failed = [
        file(tmp_path / f"{name}-failed.h5", unsupported(content, "crown") if who in (name, "both") else content)
        for name, content in contents.items()
    ]
    result, expected = compare(*failed), compare(*whole, method="ibp")
    assert replace(result, method="ibp") == expected, "with crown missing on one side, both are judged by ibp"
    assert "no certificate method" in refusal(*failed, "crown")


# --require


def comparison(tmp_path: Path, **metrics: float) -> Comparison:
    """A comparison with some metrics replaced."""
    teacher, student = pair(tmp_path, 1, 2)
    result = compare(teacher, student)
    return replace(
        result,
        retention=replace(result.retention, value=metrics.get("retention", 0.5)),
        student=replace(result.student, pgd=metrics.get("pgd", 0.5)),
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("retention>=0.5", True),
        ("retention >= 0.51", False),
        (" retention<=0.5 ", True),
        ("retention<0.5", False),
        ("retention>0.5", False),
        ("retention>5e-1", False),
        ("retention>0.4999", True),
        ("pgd<0.6", True),
        ("gains>=1", True),
        ("losses<=0", False),
        ("retention>=nan", False),
        ("retention<nan", False),
    ],
)
@pytest.mark.thin(4)
def test_requirements(tmp_path: Path, text: str, holds: bool) -> None:
    assert Requirement.parse(text).holds(comparison(tmp_path)) is holds, text


@pytest.mark.parametrize("operator", [">=", "<=", ">", "<"])
@pytest.mark.thin(2)
def test_a_metric_that_is_not_a_number_meets_nothing(tmp_path: Path, operator: str) -> None:
    assert not Requirement.parse(f"retention{operator}0").holds(comparison(tmp_path, retention=math.nan))


def test_every_documented_metric_can_be_asked_for(tmp_path: Path) -> None:
    result = comparison(tmp_path)
    names = ["clean", "pgd", "certified", "mean_radius"]
    for name in [
        "retention",
        "radius_retention",
        "gains",
        "losses",
        "mcnemar",
        *names,
        *(f"teacher_{n}" for n in names),
    ]:
        assert Requirement.parse(f"{name}>=0").holds(result), name
    assert (
        result.metrics()["teacher_clean"] == result.teacher.clean != result.metrics()["clean"] == result.student.clean
    )


@pytest.mark.parametrize("text", ["", "retention", "retention=0.9", "retention==0.9", ">=0.9", "retention>=", "a b>=1"])
def test_another_form_of_requirement_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must look like retention>=0\.9") as caught:
        Requirement.parse(text)
    assert repr(text) in str(caught.value)


def test_a_requirement_without_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="retention>=90%"):
        Requirement.parse("retention>=90%")


def test_an_unknown_metric_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown metric 'retenton'\. Did you mean 'retention'\?"):
        Requirement.parse("retenton>=0.9").holds(comparison(tmp_path))
