"""The method ``smoothing`` as a whole: coverage, closed forms, statuses, and the same counts however it is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from tests.certifying import answers, certify, prepared
from tests.marks import only
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.methods.smoothing import Smoothing
from verifiers.results.reader import read, read_images
from verifiers.results.rows import MethodRows
from verifiers.smoothing.sampling import Draw, Purpose

SMALL = {"sigma": 0.25, "n": 2000}


class Linear(nn.Module):
    """Two logits: w x + b and 0."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight + self.bias
        return torch.stack([score, torch.zeros_like(score)], 1)


def _mlp(seed: int = 0, classes: int = 4) -> nn.Module:
    """Of dropout and one hidden layer, with several classes around the middle of the box."""
    torch.manual_seed(seed)
    first, last = nn.Linear(9, 16), nn.Linear(16, classes, bias=False)
    first.bias = nn.Parameter(-0.5 * first.weight.detach().sum(1))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last, nn.Dropout(0.5)).eval()


def _asked(model: nn.Module, x: Tensor, labels: Tensor | None = None, **given: Any) -> MethodRows:
    """Rows of smoothing; labels are the network's own unless given."""
    settings = {**SMALL, **given.pop("options", {})}
    if labels is None:
        with torch.no_grad():
            labels = model(x).argmax(1)
    eps, kind = given.pop("eps", 0.2), given.pop("norm", "l2")
    return certify(model, x, labels, eps=eps, norm=kind, methods=["smoothing"], options=settings, **given)["smoothing"]


class _Urn:
    """Stands for a voter: the classes of copies are drawn with known probabilities."""

    def __init__(self, p: Sequence[float]) -> None:
        self.p, self.models = p, [None]
        self.generator = np.random.default_rng(3)

    def histogram(self, x: Tensor, draws: Sequence[Draw], purpose: Purpose, classes: int) -> Tensor:
        sizes = np.array([draw.last - draw.first for draw in draws], int)
        return torch.from_numpy(self.generator.multinomial(sizes, self.p))[None]


@pytest.mark.parametrize("question", ["eps", "grid", "full"])
@pytest.mark.parametrize("p", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.35, 0.33, 0.32], [0.96, 0.04]], ids=str)
@pytest.mark.thin(5)
def test_radii_are_too_large_no_more_often_than_alpha(p: list[float], question: str) -> None:
    """Selection, looks and stopping together; the truth is the radius of the class that the copies selected."""
    method = Smoothing.parse({"sigma": 1.0, "n": 500, "n0": 20, "alpha": 0.05, "question": question})
    smoother: Any = prepared(method, _mlp(), torch.rand(2, 1, 3, 3), eps=0.5, norm=Norm.L2)
    smoother.voter = _Urn(p)
    images = 10_000
    columns = answers(smoother, _mlp(classes=len(p)), torch.zeros(images, 1, 3, 3))
    own = np.array(p)[columns["selected"]]
    rest = np.array([max(q for j, q in enumerate(p) if j != i) for i in range(len(p))])[columns["selected"]]
    exact = {"radius": np.maximum(norm.ppf(own), 0), "radius_two_class": (norm.ppf(own) - norm.ppf(rest)) / 2}
    exact["radius_two_class"] = np.maximum(exact["radius_two_class"], 0)
    for name, truth in exact.items():
        wrong = int((columns[name] > truth + 1e-9).sum())
        assert binomtest(wrong, images, 0.05, "greater").pvalue > 1e-4, f"{name}: {wrong} of {images} at alpha 0.05"
    assert p[0] < 0.6 or (columns["radius"] > 0).mean() > 0.9, "most of these images have a certificate"


@pytest.mark.parametrize("kind", only(["l2"], ["l2", "l1", "linf"]))
@pytest.mark.slow
def test_a_linear_network_has_the_radius_of_its_closed_form(kind: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(9)
    model, x = Linear(weight, -float(weight.sum()) / 2), torch.rand(30, 1, 3, 3)
    score = (x.flatten(1) @ weight + model.bias).abs().detach()
    exact = (score / weight.norm()).numpy() / (3 if kind == "linf" else 1)
    rows = _asked(model, x, norm=kind, options={"sigma": 0.5, "n": 10_000, "question": "full"})
    assert (rows["radius"] <= exact).all(), "a certified radius exceeds the exact one"
    assert (rows["radius_two_class"] <= exact).all()
    scale = 3 if kind == "linf" else 1
    near = (exact * scale < 0.8) & (exact * scale > 0.15)
    assert (rows["radius"][near] * scale > exact[near] * scale - 0.05).all() and near.sum() > 10


@pytest.mark.slow
def test_uniform_noise_certifies_less_than_the_distance_in_l1() -> None:
    torch.manual_seed(1)
    weight = torch.randn(9)
    model, x = Linear(weight, -float(weight.sum()) / 2), torch.rand(30, 1, 3, 3)
    exact = ((x.flatten(1) @ weight + model.bias).abs() / weight.abs().max()).detach().numpy()
    rows = _asked(model, x, norm="l1", options={"sigma": 0.3, "noise": "uniform", "question": "full"})
    assert (rows["radius"] <= exact).all() and (rows["radius"] > 0).sum() > 15


@pytest.mark.slow
def test_more_copies_certify_more() -> None:
    x = torch.rand(20, 1, 3, 3)
    means = [_asked(_mlp(), x, options={"n": n, "question": "full"})["radius"].mean() for n in (200, 1000, 5000)]
    assert means[0] < means[1] < means[2]


def _same(one: MethodRows, other: MethodRows) -> None:
    for name in one.columns:
        if name != "seconds":
            assert np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind == "f"), name


@pytest.mark.slow
@pytest.mark.parametrize("question", ["eps", "grid", "full"])
def test_rows_do_not_depend_on_batches_shards_or_threads(question: str) -> None:
    x, model = torch.rand(20, 1, 3, 3), _mlp()
    options = {"question": question, "step": 0.05}
    whole = _asked(model, x, options=options)
    assert whole["radius"].max() > 0 and len(np.unique(whole["used"])) > (question != "full")
    for size in (1, 7, 64, 1000):
        _same(whole, _asked(model, x, options=options, batch_size=size))
    shards = [_asked(model, x[i::2], options=options, indices=torch.arange(20)[i::2]) for i in (0, 1)]
    for i, shard in enumerate(shards):
        for name in ("radius", "used", "predicted", "radius_two_class"):
            assert np.array_equal(shard[name], whole[name][i::2]), name
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _same(whole, _asked(model, x, options=options))
    finally:
        torch.set_num_threads(before)


class _Interrupt(Reporter):
    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, rows: int) -> None:
        self.left -= rows
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_counts(tmp_path: Path) -> None:
    x, model = torch.rand(20, 1, 3, 3), _mlp()
    whole = _asked(model, x, out=tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        _asked(model, x, out=tmp_path / "parts.h5", reporter=_Interrupt(8))
    assert read(tmp_path / "parts.h5").pending == 12
    _same(whole, _asked(model, x, out=tmp_path / "parts.h5"))
    votes = [read_images(tmp_path / f"{name}.h5", "smoothing", "votes", range(20)) for name in ("whole", "parts")]
    assert np.array_equal(*votes) and votes[0].shape == (20, 12, 4)


def test_votes_are_kept_at_each_look(tmp_path: Path) -> None:
    x = torch.rand(12, 1, 3, 3)
    rows = _asked(_mlp(), x, out=tmp_path / "a.h5", options={"n": 1000})
    votes = read_images(tmp_path / "a.h5", "smoothing", "votes", range(12))
    counts = np.array([60, 120, 240, 480, 1000])
    for i, stage in enumerate(rows["stage"]):
        assert votes[i].sum(1)[:stage].tolist() == counts[:stage].tolist() and rows["used"][i] == counts[stage - 1]
        assert (votes[i, stage:] == votes[i, stage - 1]).all()


def test_statuses() -> None:
    torch.manual_seed(0)
    model, x = _mlp(), torch.rand(40, 1, 3, 3)
    first = _asked(model, x, options={"n": 300, "sigma": 1.0, "question": "full"})
    labels = torch.from_numpy(np.where(first["predicted"] < 0, 0, first["predicted"]))
    labels[::2] = (labels[::2] + 1) % 4
    rows = _asked(model, x, labels, options={"n": 300, "sigma": 1.0, "question": "full"})
    status = [Status(s) for s in rows["status"]]
    assert {Status.ABSTAINED, Status.MISCLASSIFIED, Status.CERTIFIED} == set(status)
    for i, found in enumerate(status):
        assert (found is Status.ABSTAINED) == (rows["predicted"][i] == -1) == (rows["radius_one_class"][i] == 0)
        assert (rows["radius"][i] > 0) == (found is Status.CERTIFIED)
        assert (found is Status.MISCLASSIFIED) == (rows["predicted"][i] not in (-1, labels[i]))
    assert not rows["correct"][[s is not Status.CERTIFIED for s in status]].any()


def test_the_clean_prediction_of_the_network_plays_no_part() -> None:
    class Spiked(nn.Module):
        """Wrong on the very image, right on every noisy copy."""

        def forward(self, x: Tensor) -> Tensor:
            clean = (x.flatten(1) == 0.5).all(1)
            return torch.stack([clean.float(), 1 - clean.float()], 1)

    rows = _asked(Spiked(), torch.full((3, 1, 3, 3), 0.5), torch.tensor([1, 1, 0]))
    assert rows["status"].tolist() == [Status.CERTIFIED, Status.CERTIFIED, Status.MISCLASSIFIED]


@pytest.mark.slow
def test_one_radius_takes_fewer_copies_and_certifies_the_same() -> None:
    x, model = torch.rand(40, 1, 3, 3), _mlp()
    at_eps, full = (_asked(model, x, options={"n": 10_000, "question": question}) for question in ("eps", "full"))
    lost = (full["radius"] >= 0.2) & (at_eps["radius"] < 0.2)
    assert lost.mean() <= 0.05 and at_eps["used"].mean() < 0.3 * full["used"].mean()


def test_teacher_and_student_share_their_copies(tmp_path: Path) -> None:
    x, student, teacher = torch.rand(6, 1, 3, 3), _mlp(0), _mlp(1)
    labels = student(x).argmax(1)
    options = {"question": "full", "n": 500}
    rows = _asked(student, x, labels, out=tmp_path / "s.h5", options=options, teacher=teacher)
    alone = _asked(teacher, x, labels, out=tmp_path / "t.h5", options=options)
    _same(_asked(student, x, labels, options=options), MethodRows("", {}, {k: rows[k] for k in rows.columns}))
    votes = {
        name: read_images(tmp_path / f"{name[0]}.h5", "smoothing", name[2:], range(6))
        for name in ("s:votes", "s:teacher_votes", "s:same_votes", "t:votes")
    }
    assert np.array_equal(votes["s:teacher_votes"], votes["t:votes"][:, -1]), "the teacher's own run saw other copies"
    assert (votes["s:same_votes"] <= np.minimum(votes["s:votes"][:, -1], votes["s:teacher_votes"])).all()
    assert (alone["used"] == 500).all() and 0 < votes["s:same_votes"].sum() < 6 * 500


def test_a_thousand_classes() -> None:
    rows = _asked(_mlp(classes=1000), torch.rand(3, 1, 3, 3), options={"n": 200})
    assert set(rows["status"].tolist()) <= {Status.ABSTAINED, Status.CERTIFIED}


def test_a_network_without_finite_logits_under_noise_abstains() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            outside = ((x < 0) | (x > 1)).flatten(1).any(1, keepdim=True)
            return torch.where(outside, float("nan"), x.flatten(1)[:, :3])

    rows = _asked(Broken(), torch.rand(4, 1, 3, 3), options={"sigma": 3.0})
    assert (rows["status"] == Status.ABSTAINED).all()


def test_bfloat16_is_another_network() -> None:
    x = torch.rand(10, 1, 3, 3)
    coarse = _asked(_mlp(), x, options={"dtype": "bfloat16", "question": "full"})
    assert coarse.attributes["dtype"] == "bfloat16"
    fine = _asked(_mlp(), x, options={"question": "full"})
    assert not np.array_equal(coarse["p_lower"], fine["p_lower"]) and coarse["radius"].mean() > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sigma": 0}, "sigma must be greater than 0, got 0"),
        ({"sigma": -1.0}, "sigma must be greater than 0, got -1.0"),
        ({"sigma": "small"}, "sigma: 'small' is not a number"),
        ({"alpha": 0.5}, "alpha must be less than 0.5, got 0.5"),
        ({"alpha": 0.0}, "alpha must be greater than 0, got 0.0"),
        ({"n": 50}, "n must be at least n0, got n=50 and n0=100"),
        ({"n": 10**23}, "n must be at most 1000000000000000, got 1000"),
        ({"n": 100.5}, "n: 100.5 is not a whole number"),
        ({"noise": "gausian"}, "noise must be 'gaussian' or 'uniform', got 'gausian'"),
        ({"question": "everything"}, "question must be 'eps', 'grid' or 'full', got 'everything'"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"noise": 3}, "noise must be 'gaussian' or 'uniform', got 3"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=f"^method smoothing: {text}"):
        _asked(_mlp(), torch.rand(2, 1, 3, 3), options=options)


def test_sigma_must_be_given() -> None:
    with pytest.raises(InputError, match="method smoothing: the setting sigma is missing"):
        certify(_mlp(), torch.rand(2, 1, 3, 3), torch.zeros(2).long(), eps=0.2, norm="l2", methods=["smoothing"])


def test_uniform_noise_has_only_l1_radii() -> None:
    for kind in ("l2", "linf"):
        with pytest.raises(InputError, match="take the norm l1, or gaussian noise"):
            _asked(_mlp(), torch.rand(2, 1, 3, 3), norm=kind, options={"noise": "uniform"})


def test_a_file_of_another_function_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def __init__(self, sign: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last, self.function = nn.Linear(9, 3), [sign]

        def forward(self, x: Tensor) -> Tensor:
            return self.function[0] * self.last(x.flatten(1))

    x, labels = torch.rand(6, 1, 3, 3), torch.zeros(6, dtype=torch.int64)
    _asked(Turned(1), x, labels, out=tmp_path / "a.h5")
    with pytest.raises(InputError, match="made with another program_sha256"):
        _asked(Turned(-1), x, labels, out=tmp_path / "a.h5")


def test_a_file_of_another_function_without_a_program_is_refused(tmp_path: Path) -> None:
    class Read(nn.Module):
        """Reads a value of the image in Python, so that no program is captured."""

        def __init__(self, sign: int) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.last, self.function = nn.Linear(9, 3), [sign]

        def forward(self, x: Tensor) -> Tensor:
            float(x.sum())
            return self.function[0] * self.last(x.flatten(1))

    x, labels = torch.rand(6, 1, 3, 3), torch.zeros(6, dtype=torch.int64)
    _asked(Read(1), x, labels, out=tmp_path / "a.h5", options={"n": 200})
    with pytest.raises(InputError, match="predicts otherwise"):
        _asked(Read(-1), x, labels, out=tmp_path / "a.h5", options={"n": 200})


def test_a_teacher_with_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match="teacher gives logits"):
        _asked(_mlp(), torch.rand(2, 1, 3, 3), teacher=_mlp(classes=7))


def test_a_pass_that_does_not_fit_is_halved() -> None:
    def refuse(module: nn.Module, given: tuple[Tensor]) -> None:
        if len(given[0]) > 20:
            raise torch.OutOfMemoryError

    x, whole = torch.rand(4, 1, 3, 3), _mlp()
    labels = whole(x).argmax(1)
    with nn.modules.module.register_module_forward_pre_hook(refuse):  # of every module, a captured program too
        tight = _asked(whole, x, labels)
    assert tight.attributes["pass"] == "16 copies"
    assert np.array_equal(tight["radius"], _asked(whole, x, labels)["radius"])


def test_weights_with_five_axes_run() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.last = nn.Conv3d(1, 2, (1, 3, 3)), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.convolution(x[:, None]).flatten(1))

    assert (_asked(Deep().eval(), torch.rand(2, 1, 3, 3))["used"] > 0).all()


def test_images_outside_the_box_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        _asked(_mlp(), 3 * torch.rand(2, 1, 3, 3))


def test_what_a_person_is_told_first() -> None:
    class Told(Reporter):
        lines: list[str] = []

        def inform(self, text: str) -> None:
            self.lines.append(text)

    _asked(_mlp(), torch.rand(30, 1, 3, 3), norm="linf", eps="0.9", reporter=Told())
    told = " | ".join(Told.lines)
    for part in ("largest radius attainable", "beyond it", "weak", "under noise 0.25", "160 to 2100 copies"):
        assert part in told, f"{part!r} is missing in {told}"
