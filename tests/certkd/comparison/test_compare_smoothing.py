"""Comparing certificates of smoothing: published pairs, literal loops, what is refused, and the command line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from certkd.comparison.compare import Comparison, compare, figures, radii
from certkd.report import tables
from tests.certificate_files import Content, defaults, write_file
from tests.certifying import certify
from tests.cli import certkd
from tests.paths import GOLDEN
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.statistics import mcnemar
from verifiers.core.status import Status
from verifiers.results.rows import Certificates
from verifiers.results.summaries.smoothing import basis
from verifiers.smoothing.logs import Vote, import_log
from verifiers.smoothing.statistics import Law, Noise, Schedule, lower

FOLDER = GOLDEN / "smoothing"
PAIR = [FOLDER / f"pair_cifar10_s050_consistency_resnet{depth}.tsv.gz" for depth in (110, 20)]
SETTINGS: dict[str, Any] = {**defaults("smoothing"), "sigma": 0.5, "n": 1000, "n0": 10, "question": "full"}
COUNT = 60
SMALL = Law(Noise.GAUSSIAN, 0.5, Norm.L2, 1)

needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published logs are not beside the repository")


def votes(seed: int, count: int = COUNT) -> dict[str, np.ndarray]:
    """Rows of smoothing: a fifth wrong, a fifth abstained, radii that are often equal, 0.5 among them."""
    random = np.random.default_rng(seed)
    kind = random.choice([0, 1, 2], count, p=[0.6, 0.2, 0.2])
    radius = random.choice([0.1, 0.3, 0.5, 0.9, 1.2], count)
    return rows(np.choose(kind, [Status.CERTIFIED, Status.MISCLASSIFIED, Status.ABSTAINED]), radius)


def rows(status: np.ndarray, radius: np.ndarray) -> dict[str, np.ndarray]:
    count, correct = len(status), (status == Status.CERTIFIED) | (status == Status.NOT_CERTIFIED)
    radius = np.where(correct, radius, 0.0)
    return {
        "index": 100 + 3 * np.arange(count),
        "label": np.zeros(count, np.int64),
        "predicted": np.select([correct, status == Status.ABSTAINED], [0, -1], 1),
        "correct": correct.astype("uint8"),
        "radius": radius,
        "margin": np.full(count, np.nan),
        "certified": (radius >= 0.5).astype("uint8"),
        "seconds": np.zeros(count),
        "status": status.astype("uint8"),
    }


def proofs(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    status = np.where(random.random(COUNT) < 0.9, Status.CERTIFIED, Status.MISCLASSIFIED)
    return rows(status, random.choice([0.2, 0.5, 0.6], COUNT))


def voted(content: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rows of smoothing with the next radii that a count of votes gives, as an imported log has them."""
    schedule = Schedule.of(settings["question"], settings["n"], settings["alpha"])
    law = Law(Noise(settings["noise"]), settings["sigma"], Norm.L2, 4)
    bounds = lower(np.arange(schedule.counts[-1] + 1), schedule.counts[-1], schedule.levels[-1])
    values, wanted = law.one_class(bounds), np.where(content["predicted"] == -1, 0.0, content["radius"])
    wanted = np.where(content["status"] == Status.MISCLASSIFIED, 0.3, wanted)
    count = np.where(wanted > 0, np.searchsorted(values, wanted).clip(max=len(values) - 1), 0)
    kept = content["status"] == Status.CERTIFIED
    return {
        **content,
        "selected": np.where(wanted > 0, content["predicted"], 1),
        "p_lower": bounds[count],
        "radius_one_class": values[count],
        "radius": np.where(kept, values[count], 0.0),
    }


def file(path: Path, content: Content, **changes: Any) -> Certificates:
    """A certificate file with these rows; changes are settings of smoothing."""
    settings = {**SETTINGS, **changes}
    content = {name: voted(rows, settings) if name == "smoothing" else rows for name, rows in content.items()}
    return write_file(path, content, eps="0.5", norm="l2", settings={"smoothing": settings})


def pair(folder: Path, **changes: Any) -> list[Certificates]:
    return [file(folder / f"{seed}.h5", {"smoothing": votes(seed)}, **changes) for seed in (1, 2)]


def refusal(teacher: Certificates, student: Certificates, method: str = "best") -> str:
    """The one line that refuses a comparison."""
    with pytest.raises(InputError) as caught:
        compare(teacher, student, method=method)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# figures


@pytest.mark.parametrize("method", ["best", "smoothing"])
def test_figures_equal_literal_loops(tmp_path: Path, method: str) -> None:
    teacher, student = pair(tmp_path)
    result = compare(teacher, student, method=method)
    gains, losses, both = [], [], 0
    for i in range(COUNT):
        certified = []
        for certificates in (student, teacher):
            row = {name: values[i] for name, values in certificates["smoothing"].columns.items()}
            certified.append(row["status"] == Status.CERTIFIED and row["radius"] >= 0.5)
        gains += [100 + 3 * i] if certified[0] and not certified[1] else []
        losses += [100 + 3 * i] if certified[1] and not certified[0] else []
        both += certified[0] and certified[1]
    assert (list(result.gains), list(result.losses), result.retention.hits) == (gains, losses, both)
    assert gains and losses and both, "an empty case would test nothing"
    assert result.metrics()["mcnemar"] == result.mcnemar == mcnemar(len(gains), len(losses))
    assert result.mcnemar == pytest.approx(stats.binomtest(len(gains), len(gains) + len(losses)).pvalue, rel=1e-12)
    assert (result.method, result.methods) == ("smoothing", ("smoothing",))
    assert result.settings == {"smoothing": SETTINGS}


def test_abstaining_is_wrong_and_stays_in_the_denominator(tmp_path: Path) -> None:
    status = np.array([Status.CERTIFIED] * 15 + [Status.MISCLASSIFIED] * 15 + [Status.ABSTAINED] * 30)
    found = figures(file(tmp_path / "a.h5", {"smoothing": rows(status, np.full(COUNT, 0.8))}))
    assert (found.clean, found.certified, found.mean_radius) == (0.25, 0.25, pytest.approx(0.2, rel=0.01))
    assert math.isnan(found.pgd), "nothing attacked the smoothed classifier"


def test_errors_of_the_mean_radius_paired_and_not(tmp_path: Path) -> None:
    teacher, student = pair(tmp_path)
    difference = compare(teacher, student).differences["radius"]
    ours, theirs = (c["smoothing"]["radius"] for c in (student, teacher))
    spread = [sum((x - sum(v) / COUNT) ** 2 for x in v) / (COUNT - 1) for v in (ours - theirs, ours, theirs)]
    assert difference.mean == pytest.approx(sum(ours) / COUNT - sum(theirs) / COUNT)
    assert difference.standard_error == pytest.approx(math.sqrt(spread[0] / COUNT))
    assert difference.unpaired_error == pytest.approx(math.sqrt(spread[1] / COUNT + spread[2] / COUNT))


@pytest.mark.parametrize(
    ("settings", "shown", "words"),
    [
        ({}, [0, 0.25, 0.5, 0.75, 1.0], "wrong with probability 0.001."),
        ({"question": "eps"}, [0.5], "a vote ended once eps was decided"),
        ({"question": "grid", "step": 0.2}, [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0], "between two multiples of 0.2"),
        ({"question": "grid", "step": 0.1}, [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0], "between two multiples of 0.1"),
    ],
)
def test_radii_are_shown_where_votes_decided(tmp_path: Path, settings: dict, shown: list[float], words: str) -> None:
    result = compare(*pair(tmp_path, **settings))
    assert [at.radius for at in result.curve if at.radius < 1.1] == shown
    assert words in basis(result.settings["smoothing"])
    text = [part for part in tables.comparison(result, "teacher", "student") if isinstance(part, str)]
    assert any(words in part for part in text)


# which method


@pytest.mark.slow
def test_proofs_come_first_and_votes_where_there_is_none_in_common(tmp_path: Path) -> None:
    both = [file(tmp_path / f"both-{seed}.h5", {"smoothing": votes(seed), "crown": proofs(seed)}) for seed in (1, 2)]
    only = [file(tmp_path / f"only-{seed}.h5", {"smoothing": votes(seed)}) for seed in (1, 2)]
    assert (compare(*both).method, compare(*both).methods) == ("best", ("crown",))
    assert compare(*both).teacher.clean == both[0]["crown"]["correct"].mean(), "of the network, not of its votes"
    expected = compare(*only).to_dict()
    assert expected["method"] == "smoothing"
    for files in (both, only):
        assert compare(*files, method="smoothing").to_dict() == expected
    for mixed in ((both[0], only[1]), (only[0], both[1])):
        assert compare(*mixed).to_dict() == expected, "one file without a proof"
    assert np.array_equal(radii(both[0]), both[0]["crown"]["radius"])
    assert np.array_equal(radii(both[0], ("smoothing",)), both[0]["smoothing"]["radius"])
    assert "no certificate method 'crown' in both files. Known: best, smoothing." in refusal(both[0], only[1], "crown")


def test_a_proof_that_could_not_run_leaves_the_votes(tmp_path: Path) -> None:
    failed = {**proofs(1), "status": np.full(COUNT, Status.UNSUPPORTED.value, "uint8")}
    failed |= {name: np.zeros(COUNT, failed[name].dtype) for name in ("radius", "certified")}
    teacher = file(tmp_path / "t.h5", {"smoothing": votes(1), "crown": failed})
    student = file(tmp_path / "s.h5", {"smoothing": votes(2), "crown": proofs(2)})
    assert compare(teacher, student).method == "smoothing"


def test_an_attack_on_the_network_says_nothing_about_its_votes(tmp_path: Path) -> None:
    attack = {**rows(np.full(COUNT, Status.NOT_CERTIFIED), np.zeros(COUNT)), "margin": np.ones(COUNT)}
    files = [file(tmp_path / f"{s}.h5", {"pgd": attack, "smoothing": votes(s)}) for s in (1, 2)]
    result = compare(*files)
    assert math.isnan(result.teacher.pgd) and math.isnan(result.differences["pgd"].mean)
    assert result.teacher.clean == files[0]["smoothing"]["correct"].mean()


def test_votes_of_two_networks() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(12, 1, 2, 2), torch.arange(12) % 2
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    options = {"sigma": 0.25, "n": 200, "n0": 10}
    teacher, student = (
        certify(network, x, y, eps="0.1", norm="l2", methods=["smoothing"], options=options) for network in networks
    )
    result = compare(teacher, student)
    assert result.retention.cases == int(teacher["smoothing"]["certified"].sum())
    assert result.student.clean == student["smoothing"]["correct"].mean()


# what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma": 0.25}, "sigma 0.5 and 0.25"),
        ({"n": 10_000}, "n 1000 and 10000"),
        ({"alpha": 0.01}, "alpha 0.001 and 0.01"),
        ({"n0": 100}, "n0 10 and 100"),
        ({"noise": "uniform"}, "noise gaussian and uniform"),
        ({"question": "eps"}, "question full and eps"),
        ({"sigma": 0.25, "n": 10_000}, "n 1000 and 10000, sigma 0.5 and 0.25"),
    ],
)
def test_other_votes_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    teacher = file(tmp_path / "t.h5", {"smoothing": votes(1)})
    student = file(tmp_path / "s.h5", {"smoothing": votes(2)}, **change)
    assert refusal(teacher, student) == f"the files ran smoothing with different settings: {words}"


def test_another_precision_belongs_to_the_network(tmp_path: Path) -> None:
    teacher = file(tmp_path / "t.h5", {"smoothing": votes(1)})
    student = file(tmp_path / "s.h5", {"smoothing": votes(2)}, dtype="bfloat16")
    assert compare(teacher, student).method == "smoothing"


def test_proofs_are_compared_whatever_the_votes_were(tmp_path: Path) -> None:
    files = [file(tmp_path / f"{n}.h5", {"smoothing": votes(n), "crown": proofs(n)}, n=n) for n in (1000, 10_000)]
    assert compare(*files).methods == ("crown",)
    assert "ran smoothing with different settings" in refusal(*files, "smoothing")


def log(path: Path, radius: float, label: int = 1) -> Path:
    lines = [f"{i}\t{label}\t{label}\t{radius}\t1" for i in range(4)]
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect", *lines]))
    return path


def test_logs_are_compared_with_logs_of_the_same_samples(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sigma": 0.5, "n": 100_000, "alpha": 0.001}
    teacher, student = (import_log(log(tmp_path / f"{r}.tsv", r), Vote(**settings)) for r in (0.61, 0.31))
    assert compare(teacher, student).losses == (0, 1, 2, 3)
    assert "differ in data_sha256" in refusal(
        teacher, import_log(log(tmp_path / "other.tsv", 0.31, 2), Vote(**settings))
    )
    assert "sigma 0.5 and 0.25" in refusal(
        teacher, import_log(log(tmp_path / "s.tsv", 0.31), Vote(**{**settings, "sigma": 0.25}))
    )
    own = file(tmp_path / "own.h5", {"smoothing": votes(1)})
    assert "one was imported from a log" in refusal(own, teacher) and "imported" in refusal(teacher, own)


# the command line


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = certkd(*arguments)
    return result.code, result.out, result.err


def test_from_logs_to_a_comparison(tmp_path: Path) -> None:
    settings = ["--n", "100000", "--alpha", "1/1000", "--sigma", "0.5"]
    for name, radius in (("t", 0.61), ("s", 0.31)):
        code, out, err = run("import-log", log(tmp_path / f"{name}.tsv", radius), *settings, "--data", "cifar10")
        assert code == 0 and not err, err
        assert "radius > 0" in out and f"written to {tmp_path / name}.h5" in out and "of the printed ones" in out
    code, out, _ = run("show", tmp_path / "t.h5")
    assert code == 0 and ">= 100.0%" in out and "log        t.tsv  sha256" in out and "cifar10" in out
    assert "probabilistic" in out and str(tmp_path) not in out
    assert run("show", tmp_path / "t.h5", "--csv", "smoothing")[1].count("\n") == 5
    files = [tmp_path / "t.h5", tmp_path / "s.h5"]
    code, out, _ = run("compare", *files, "--plot", tmp_path / "p.png", "--require", "mcnemar<0.2")
    assert code == 0 and "McNemar's p" in out and "0.5 (eps)" in out and "(smoothing)" in out
    assert Image.open(tmp_path / "p.png").format == "PNG"
    content = json.loads(run("compare", *files, "--method", "smoothing", "--json")[1])
    assert content["metrics"]["mcnemar"] == 0.125 and content["metrics"]["losses"] == 4
    assert content["curve"][0]["retention"] == 1 and content["settings"]["smoothing"]["sigma"] == 0.5
    assert content["differences"]["radius"]["unpaired_error"] == pytest.approx(0, abs=1e-9)


def test_a_log_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = log(tmp_path / "t.tsv", 3.9)
    code, out, err = run("import-log", path, "--n", "1000", "--alpha", "0.001", "--sigma", "1")
    assert code == 2 and not out and err.count("\n") == 1 and "come from no count of n=1000" in err, err
    assert not (tmp_path / "t.h5").exists()
    assert run("import-log", path, "--n", "1000", "--alpha", "0.001")[0] == 2, "sigma is needed"


def test_a_doubt_is_a_warning(tmp_path: Path) -> None:
    radii = SMALL.one_class(lower(np.arange(600, 999, 9), 1000, 0.001))
    lines = [f"{i}\t0\t0\t{radius:.3}\t1" for i, radius in enumerate(radii)]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect", *lines]))
    code, _, err = run("import-log", path, "--n", "1000000", "--alpha", "0.001", "--sigma", "0.5")
    assert (
        code == 0
        and err.startswith("warning: every radius comes from a count of n=1000, alpha=0.001 too")
        and err.count("\n") == 1
    )


# a published pair


def published(eps: str) -> Comparison:
    files = [import_log(path, Vote(sigma=0.5, n=100_000, alpha=0.001), eps=eps) for path in PAIR]
    return compare(*files)


@needs_golden
@pytest.mark.slow
def test_a_published_pair() -> None:
    """Published at r = 0.5: 628 and 338, retention 87.6 %. What prints as 0.5 starts at 0.4995."""
    result = published("0.4995")
    assert (len(result.losses), len(result.gains)) == (628, 338)
    assert round(100 * result.retention.value, 1) == 87.6
    difference = result.differences["radius"]
    assert difference.mean == pytest.approx(-0.0332, abs=0.00015)
    assert difference.standard_error == pytest.approx(0.0027, abs=5e-5)
    assert difference.unpaired_error == pytest.approx(0.0104, abs=0.00015)
    assert result.teacher.mean_radius == pytest.approx(0.7195, abs=0.0015)
    assert result.student.mean_radius == pytest.approx(0.6864, abs=0.0015)
    assert result.mcnemar == pytest.approx(stats.binomtest(338, 966).pvalue, rel=1e-9)


@needs_golden
@pytest.mark.slow
def test_what_a_published_pair_certifies_at_a_half() -> None:
    """Two radii of the teacher print as 0.5 and may be as small as 0.4995: they are not certified at 0.5."""
    result = published("0.5")
    assert (len(result.losses), len(result.gains), result.retention.cases) == (627, 339, 5059)
    assert round(100 * result.retention.value, 1) == 87.6
    assert [at.radius for at in result.curve] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


@pytest.mark.slow
def test_votes_on_the_same_copies_are_told_where_the_student_saw_this_teachers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval() for _ in range(3)]
    with torch.no_grad():
        networks[1][1].weight.copy_(networks[0][1].weight + 0.1 * networks[1][1].weight)
    x, y = torch.rand(5, 4), torch.zeros(5, dtype=torch.int64)

    def votes_of(network: nn.Module, name: str, teacher: nn.Module | None = None) -> Certificates:
        settings = {"sigma": 1.0, "n": 300}
        out = tmp_path / name
        return certify(
            network, x, y, eps=0.1, norm="l2", methods=["smoothing"], options=settings, out=out, teacher=teacher
        )

    teacher, other = votes_of(networks[0], "t.h5"), votes_of(networks[2], "o.h5")
    student = votes_of(networks[1], "s.h5", networks[0])
    shared = compare(teacher, student).same_copies
    assert shared is not None and 0 < shared.agreement < 1 and shared.variance < shared.unpaired_variance
    assert compare(teacher, student).to_dict()["same_copies"]["agreement"] == shared.agreement
    assert any("vote alike on" in str(part) for part in tables.comparison(compare(teacher, student), "t", "s"))
    assert compare(other, student).same_copies is None and compare(teacher, other).same_copies is None
