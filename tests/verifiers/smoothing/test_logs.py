"""Published logs as certificate files: against counts that are known, all counts tried, and logs of others."""

import gzip
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.stats import beta, norm

from tests.paths import GOLDEN
from verifiers.core.columns import COMMON_COLUMNS
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.methods.smoothing import Smoothing
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.smoothing import logs
from verifiers.smoothing.log_file import read_log
from verifiers.smoothing.logs import Vote, smallest_count
from verifiers.smoothing.statistics import Law, Noise, lower

FOLDER = GOLDEN / "smoothing"
TRUE = {"sigma": 0.5, "n": 1000, "alpha": 0.001}
HEADER = "idx\tlabel\tpredict\tradius\tcorrect"

needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published logs are not beside the repository")


def import_log(
    path: Path, *, eps: str = "0.5", out: Path | None = None, data: str = "", **settings: Any
) -> Certificates:
    """A log as a certificate file."""
    return logs.import_log(path, Vote(**settings), eps=eps, out=out, data=data)


def exact(k: int, n: int, alpha: float, sigma: float) -> float:
    """The radius of a count by the quantile functions of scipy.stats."""
    return float(sigma * norm.ppf(beta.ppf(alpha, k, n - k + 1)))


def line(index: int, label: int, predicted: int, radius: object) -> str:
    return f"{index}\t{label}\t{predicted}\t{radius}\t{int(label == predicted)}"


def write(path: Path, lines: Sequence[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines, ""]))
    return path


def log_of(
    path: Path, counts: Sequence[int], show: Callable[[float], str] = "{:.3}".format, **settings: Any
) -> tuple[Path, list[float]]:
    """A log with these counts, every third row wrong and one that abstained at the end, and the exact radii."""
    sigma, n, alpha = ({**TRUE, **settings}[key] for key in ("sigma", "n", "alpha"))
    radii = [exact(k, n, alpha, sigma) for k in counts]
    rows = [line(10 * i, 3, 5 if i % 3 == 2 else 3, show(radius)) for i, radius in enumerate(radii)]
    return write(path, [*rows, line(10 * len(rows), 3, -1, 0.0)]), radii


def rows_of(certificates: Certificates) -> dict[str, np.ndarray]:
    return dict(certificates["smoothing"].columns)


def refusal(path: Path, **settings: Any) -> str:
    """The one line that refuses a log."""
    with pytest.raises(InputError) as caught:
        import_log(path, **{**TRUE, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# radii


PRINTED: dict[str, Callable[[float], str]] = {
    "three digits": "{:.3}".format,
    "three digits, scientific": "{:.2e}".format,
    "four decimals": "{:.4f}".format,
    "four decimals, zeros dropped": lambda radius: str(round(radius, 4)),
    "all digits": repr,
    "float32": lambda radius: str(np.float32(radius)),
}


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("printed", PRINTED)
@pytest.mark.thin(2)
def test_a_stored_radius_is_never_above_that_of_the_true_count(tmp_path: Path, printed: str, n: int) -> None:
    generator = np.random.default_rng(n)
    counts = [n, n - 1, *generator.integers(n // 2 + n // 20, n, 150).tolist()]
    path, radii = log_of(tmp_path / "a.tsv", counts, PRINTED[printed], n=n)
    rows = rows_of(import_log(path, **{**TRUE, "n": n}))
    for i, radius in enumerate(radii):
        stored = rows["radius_one_class"][i]
        assert 0 < stored <= radius * (1 + 1e-14), f"count {counts[i]}: {stored} is above {radius}"
        assert stored == pytest.approx(radius, rel=0.011), f"count {counts[i]}: further than its text allows"
        assert rows["p_lower"][i] <= beta.ppf(TRUE["alpha"], counts[i], n - counts[i] + 1) * (1 + 1e-12)
    if printed in ("all digits", "float32"):
        assert rows["radius_one_class"][:-1] == pytest.approx(radii, rel=1e-6), "such a text has one count"


@pytest.mark.slow
@pytest.mark.parametrize("show", ["{:.3}", "{:.2f}"])
def test_the_stored_count_is_the_smallest_that_prints_so(tmp_path: Path, show: str) -> None:
    n, alpha, sigma = 3000, 0.001, 1.0
    counts = [k for k in range(n + 1) if k and exact(k, n, alpha, sigma) > 0.005]
    path, radii = log_of(tmp_path / "a.tsv", counts, show.format, sigma=sigma, n=n)
    stored = rows_of(import_log(path, sigma=sigma, n=n, alpha=alpha))["radius_one_class"]
    shared = 0
    for i, radius in enumerate(radii):
        alike = [other for other in radii if float(show.format(other)) == float(show.format(radius))]
        shared += len(alike) > 1
        assert stored[i] == pytest.approx(min(alike), rel=1e-9), f"count {counts[i]} prints {show.format(radius)}"
    assert shared, "no text has two counts: nothing was chosen"


@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_the_smallest_count_is_that_of_a_whole_table(n: int) -> None:
    law = Law(Noise.GAUSSIAN, 0.7, Norm.L2, 1)
    table = law.one_class(lower(np.arange(n + 1), n, 0.01))
    wanted = np.concatenate([table, np.nextafter(table, 9), [0.0, 1e-300, 9.0], np.linspace(0, 3, 50)])
    found = smallest_count(law, n, 0.01, wanted)
    for radius, count in zip(wanted, found, strict=True):
        enough = np.flatnonzero(table >= radius)
        assert count == (enough[0] if len(enough) else n + 1), f"radius {radius} of n={n}"


def test_a_text_that_is_a_power_of_ten_starts_closer_below() -> None:
    certificates = import_log_of_texts(["0.0377", "1.0", "0.1"], sigma=1.0, n=1_000_000)
    below, above = certificates["smoothing"]["radius"][1:3]
    assert 0.9995 * (1 - 2e-7) <= below < 0.99951, "0.9994 would print as 0.999"
    assert 0.09995 * (1 - 2e-7) <= above < 0.099953


def import_log_of_texts(texts: Sequence[str], **settings: Any) -> Certificates:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.tsv", [line(i, 1, 1, text) for i, text in enumerate(texts)])
        return import_log(path, **{**TRUE, **settings})


def test_radii_of_uniform_noise_are_l1(tmp_path: Path) -> None:
    counts = [600, 700, 850, 990, 1000]
    radii = [3**0.5 * 0.5 * (2 * beta.ppf(0.001, k, 1001 - k) - 1) for k in counts]
    path = write(tmp_path / "a.tsv", [line(i, 0, 0, f"{radius:.3}") for i, radius in enumerate(radii)])
    certificates = import_log(path, noise="uniform", **TRUE)
    stored = certificates["smoothing"]["radius"]
    assert certificates.attributes["norm"] == "l1" and stored == pytest.approx(radii, rel=0.005)
    assert (stored <= np.array(radii)).all()


# the file


def test_a_log_becomes_the_file_that_certify_writes(tmp_path: Path) -> None:
    path, _ = log_of(tmp_path / "a.tsv", [600, 800, 900, 950, 1000])
    certificates = import_log(path, **TRUE, eps="0.4", out=tmp_path / "a.h5", data="digits")
    rows, attributes = rows_of(read(tmp_path / "a.h5")), certificates.attributes
    one = rows["radius_one_class"]
    assert rows["index"].tolist() == [0, 10, 20, 30, 40, 50]
    assert rows["predicted"].tolist() == rows["selected"].tolist() == [3, 3, 5, 3, 3, -1]
    assert rows["correct"].tolist() == [1, 1, 0, 1, 1, 0]
    names = [Status(status).name for status in rows["status"]]
    assert names == ["CERTIFIED", "CERTIFIED", "MISCLASSIFIED", "CERTIFIED", "CERTIFIED", "ABSTAINED"]
    assert rows["radius"].tolist() == [one[0], one[1], 0, one[3], one[4], 0], "a wrong class has no radius"
    assert one[2] > 0, "what a wrong class certifies is kept"
    assert rows["certified"].tolist() == [0, 0, 0, 1, 1, 0]
    assert math.isnan(rows["p_lower"][5]) and np.isfinite(rows["p_lower"][:5]).all()
    assert (rows["used"] == 1000).all() and (rows["stage"] == 1).all()
    assert (
        np.isnan(rows["margin"]).all() and np.isnan(rows["radius_two_class"]).all() and np.isnan(rows["seconds"]).all()
    )
    assert (attributes["norm"], attributes["eps_text"], attributes["samples"], attributes["data"]) == (
        *("l2", "0.4", 6),
        "digits",
    )
    assert (attributes["log"], attributes["imported"]) == ("a.tsv", True)
    assert attributes["log_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file["smoothing"]) == {column.name for column in (*COMMON_COLUMNS, *Smoothing.columns)}
        assert not file["smoothing/votes"][:].any() and file["smoothing/votes"].shape[2] == 6
        values = [*file.attrs.values(), *file["smoothing"].attrs.values()]
        assert not any(str(tmp_path) in str(value) for value in values), "a path of this machine"


def test_every_order_and_packing_is_the_same_data(tmp_path: Path) -> None:
    path, _ = log_of(tmp_path / "a.tsv", [600, 800, 900])
    first, *lines = path.read_text().splitlines()
    turned = write(tmp_path / "b.tsv", lines[::-1], first)
    packed, named = tmp_path / "c.tsv.gz", tmp_path / "packed-without-a-hint"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    named.write_bytes(packed.read_bytes())
    swapped = write(
        tmp_path / "d.tsv", ["\t".join(row.split("\t")[::-1]) for row in lines], "\t".join(first.split()[::-1])
    )
    whole = import_log(path, **TRUE)
    for other in (turned, packed, named, swapped):
        found = import_log(other, **TRUE)
        for name in ("data_sha256", "indices_sha256", "settings"):
            assert found.attributes[name] == whole.attributes[name], f"{other.name}: {name}"
        for name, values in rows_of(whole).items():
            assert np.array_equal(rows_of(found)[name], values, equal_nan=values.dtype.kind == "f"), (other.name, name)


def test_other_labels_or_samples_are_other_data(tmp_path: Path) -> None:
    hashes = set()
    for name, index, label in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0)):
        path = write(tmp_path / name, [line(index, label, label, 0.3)])
        hashes.add(import_log(path, **TRUE).attributes["data_sha256"])
    assert len(hashes) == 3


@pytest.mark.parametrize(("text", "seconds"), [("12.5", 12.5), ("0:01:02.25", 62.25), ("1:00:00", 3600), ("2:03", 123)])
def test_time_is_kept(tmp_path: Path, text: str, seconds: float) -> None:
    path = write(tmp_path / "a.tsv", [line(0, 1, 1, 0.3) + f"\t{text}"], f"{HEADER}\ttime")
    assert import_log(path, **TRUE)["smoothing"]["seconds"].tolist() == [seconds]


def test_a_log_where_every_vote_abstained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", [line(i, 1, -1, 0.0) for i in range(3)])
    rows = rows_of(import_log(path, **TRUE))
    assert (rows["status"] == Status.ABSTAINED).all() and not rows["radius"].any() and not rows["certified"].any()


def test_a_radius_that_prints_as_zero_is_still_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", [line(0, 1, 1, "0.000"), line(1, 1, 1, "1.064")])
    rows = rows_of(import_log(path, **{**TRUE, "n": 1_000_000}))
    assert 0 < rows["radius"][0] <= 0.0005 and rows["status"][0] == Status.CERTIFIED


def test_importing_again_goes_on_with_the_file_and_another_log_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    path, _ = log_of(tmp_path / "a.tsv", [600, 800])
    import_log(path, out=out, **TRUE)
    moved = path.rename(tmp_path / "moved.tsv")
    assert np.array_equal(import_log(moved, out=out, **TRUE)["smoothing"]["radius"], read(out)["smoothing"]["radius"])
    other, _ = log_of(tmp_path / "b.tsv", [601, 800])
    with pytest.raises(InputError, match="was made with another"):
        import_log(other, out=out, **TRUE)


# n and alpha that do not fit


def full_log(path: Path, n: int = 1000, alpha: float = 0.001) -> Path:
    counts = [n, n - 1, *np.random.default_rng(5).integers(n * 6 // 10, n, 300).tolist()]
    return log_of(path, counts, "{:.5}".format, n=n, alpha=alpha)[0]


@pytest.mark.parametrize("true", [0.01, 0.05, 0.0001, 0.0005, 0.025])
def test_another_alpha_is_seen_and_the_right_one_named(tmp_path: Path, true: float) -> None:
    message = refusal(full_log(tmp_path / "published.tsv", alpha=true))
    assert message.startswith("published.tsv: ") and "of 302 radii come from no count of n=1000, alpha=0.001" in message
    assert message.endswith(f"fits n=1000, alpha={true:g}"), message
    assert f"the largest is {norm.ppf(true**0.001):.4g} sigma, where 2.463 is attainable" in message


@pytest.mark.parametrize("true", [10_000, 100_000])
def test_another_n_is_seen_and_the_right_one_named(tmp_path: Path, true: int) -> None:
    message = refusal(full_log(tmp_path / "a.tsv", n=true))
    assert message.endswith(f"fits n={true}, alpha=0.001"), message


def test_the_first_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    rows = [line(7, 0, 0, 0.31), line(3, 0, 1, 1.4), line(4, 0, 0, 1.3), line(9, 0, -1, 0.0)]
    message = refusal(write(tmp_path / "a.tsv", rows))
    assert "2 of 3 radii" in message and "the first at idx 3 (1.4); the largest is 2.8 sigma" in message, message


def test_another_sigma_is_suspected_where_nothing_fits(tmp_path: Path) -> None:
    assert "no usual n and alpha fit: is sigma right?" in refusal(full_log(tmp_path / "a.tsv"), sigma=0.12)


def test_radii_of_fewer_copies_raise_a_doubt(tmp_path: Path) -> None:
    path, _ = log_of(tmp_path / "a.tsv", list(range(580, 999, 3)))
    notes = import_log(path, **{**TRUE, "n": 1_000_000})["smoothing"].attributes
    assert notes["doubt"] == "every radius comes from a count of n=1000, alpha=0.001 too: is n=1000000 right?"
    assert "doubt" not in import_log(path, **TRUE)["smoothing"].attributes


# what is refused


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0\t1\t1\t0.3", "line 2 has 4 cells for 5 columns: is it cut off?"),
        ("0\t1\t1\t0.3\t1\t9", "line 2 has 6 cells for 5 columns"),
        ("x\t1\t1\t0.3\t1", "line 2: idx 'x' is not a whole number"),
        ("0\t1.5\t1\t0.3\t1", "label '1.5' is not a whole number"),
        ("0\t1\t1\tfar\t1", "line 2: radius 'far' is not a number"),
        ("0\t1\t1\tnan\t1", "radius 'nan' must be finite and at least 0"),
        ("0\t1\t1\tinf\t1", "radius 'inf' must be finite"),
        ("0\t1\t1\t1e999999\t1", "radius '1e999999' must be finite"),
        ("0\t1\t1\t-0.1\t1", "radius '-0.1' must be finite and at least 0"),
        ("0\t1\t1\t0.3\t0", "correct is 0 where predict is 1 and label 1"),
        ("0\t1\t2\t0.3\t1", "correct is 1 where predict is 2 and label 1"),
        ("0\t1\t-1\t0.0\t1", "correct is 1 where predict is -1"),
        ("0\t1\t-1\t0.3\t0", "radius is 0.3 where predict is -1, which abstains"),
        ("0\t1\t-2\t0.0\t0", "predict -2: only predict may be negative, and then -1"),
        ("-1\t1\t1\t0.3\t1", "idx -1"),
        ("0\t-1\t-1\t0.0\t1", "label -1"),
        ("", "has no rows"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(tmp_path: Path, row: str, words: str) -> None:
    message = refusal(write(tmp_path / "a.tsv", [row]))
    assert words in message and "a.tsv" in message, message


@pytest.mark.parametrize("time", ["soon", "-1", "0:-1:00", "inf", "1e308:00:00"])
def test_a_time_that_is_none(tmp_path: Path, time: str) -> None:
    path = write(tmp_path / "a.tsv", [line(0, 1, 1, 0.3) + f"\t{time}"], f"{HEADER}\ttime")
    assert f"line 2: time '{time}' is neither seconds nor h:mm:ss" in refusal(path)


def test_samples_that_come_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", [line(i, 1, 1, 0.3) for i in (4, 7, 4)])
    assert "has idx 4 twice" in refusal(path)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    assert "lacks radius, correct" in refusal(write(tmp_path / "a.tsv", ["0\t1\t1"], "idx\tlabel\tpredict"))
    assert "lacks idx, label, predict, radius, correct" in refusal(
        write(tmp_path / "b.tsv", [], HEADER.replace("\t", ","))
    )
    (tmp_path / "empty").write_bytes(b"")
    assert "lacks idx" in refusal(tmp_path / "empty")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = gzip.compress(full_log(tmp_path / "a.tsv").read_bytes())
    for name, content in (
        ("cut", whole[:-200]),
        ("head", whole[:15]),
        ("broken", whole[:50] + b"\x00" * 50 + whole[100:]),
    ):
        (tmp_path / name).write_bytes(content)
        assert f"{name} cannot be unpacked: " in refusal(tmp_path / name)
    (tmp_path / "image").write_bytes(b"\x89PNG\xff\xfe")
    assert "image is not a log of smoothing: it is not text" in refusal(tmp_path / "image")
    assert "no such file: " in refusal(tmp_path / "none.tsv")
    assert "it is a folder, not a file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0"),
        ({"sigma": math.inf}, "sigma must be positive and finite, got inf"),
        ({"n": 0}, "n and n0 must be at least 1, got 0 and 100"),
        ({"n0": 0}, "n and n0 must be at least 1, got 1000 and 0"),
        ({"alpha": 0.5}, "alpha must be in (0, 0.5), got 0.5"),
        ({"alpha": 0.0}, "alpha must be in (0, 0.5), got 0"),
        ({"noise": "gausian"}, "Did you mean 'gaussian'?"),
        ({"eps": "0"}, "eps must be positive"),
    ],
)
def test_settings_out_of_their_range(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in refusal(log_of(tmp_path / "a.tsv", [800])[0], **settings)


def test_nothing_is_written_of_a_log_that_does_not_fit(tmp_path: Path) -> None:
    refusal(full_log(tmp_path / "a.tsv", alpha=0.01), out=tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


# published logs


@needs_golden
@pytest.mark.parametrize(
    ("name", "sigma", "printed", "votes"),
    [
        ("pair_cifar10_s050_consistency_resnet110", 0.5, 0.7195, 9312),
        ("pair_cifar10_s050_consistency_resnet20", 0.5, 0.6864, 9251),
        ("cifar10_s025_cohen_resnet110", 0.25, 0.4234, 457),
    ],
)
@pytest.mark.slow
def test_published_logs_fit_what_is_stated_of_them(name: str, sigma: float, printed: float, votes: int) -> None:
    path = FOLDER / f"{name}.tsv.gz"
    log = read_log(path)
    assert round(log.mean_radius, 4) == printed and int(log.votes.sum()) == votes
    rows = rows_of(import_log(path, sigma=sigma, n=100_000, alpha=0.001))
    stored = rows["radius_one_class"][log.votes]
    texts = [float(f"{radius:.3}") for radius in stored * (1 + 2e-7)]
    assert texts == log.radius[log.votes].tolist(), "each stored radius prints as the published one"
    assert rows["radius"].mean() <= log.mean_radius <= rows["radius"].mean() + 0.0015
    assert refusal(path, sigma=sigma, n=100_000, alpha=0.01).endswith("fits n=100000, alpha=0.001")


@pytest.mark.slow
@needs_golden
def test_published_certified_accuracy_at_what_prints_as_the_radius() -> None:
    path = FOLDER / "pair_cifar10_s050_consistency_resnet110.tsv.gz"
    radius = rows_of(import_log(path, sigma=0.5, n=100_000, alpha=0.001))["radius"]
    published = {0.2495: 57.5, 0.4995: 50.6, 0.7495: 43.2, 0.9995: 36.2, 1.245: 29.5, 1.495: 22.8, 1.745: 16.1}
    assert round(100 * float((radius > 0).mean()), 1) == 64.3
    for least, accuracy in published.items():
        assert round(100 * float((radius >= least).mean()), 1) == accuracy, f"from {least}"
