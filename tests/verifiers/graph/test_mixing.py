"""A network whose answer depends on the batch, on earlier images or on chance is refused by every method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from verifiers.core.errors import InputError
from verifiers.graph.program import Program

METHODS = ("pgd", "crown", "smoothing", "lipschitz")
CLASSES, UNITS = 3, 8
#: Whatever a network outside torch could keep.
KEPT: dict[str, Any] = {}
Code = Callable[["Coded", Tensor], Tensor]


class Coded(nn.Module):
    """A classifier of one-channel images with some code, and the layers that the code may use."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code, self.calls, self.seen = code, 0, list[Tensor]()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(16, UNITS), nn.Linear(UNITS, CLASSES)
            self.gru = nn.GRU(UNITS, UNITS)
            self.ordered = nn.GRU(4, UNITS, batch_first=True)
            self.attention = nn.MultiheadAttention(UNITS, 2)
            self.inside = nn.MultiheadAttention(4, 1, batch_first=True)
            self.along = nn.Conv1d(UNITS, UNITS, 3, padding=1)
            self.normal = nn.BatchNorm1d(UNITS, track_running_stats=False)
            self.running = nn.BatchNorm1d(UNITS)
            self.instance = nn.InstanceNorm2d(1, affine=True)
            self.group, self.layer = nn.GroupNorm(2, UNITS), nn.LayerNorm(UNITS)
        self.register_buffer("kept", torch.zeros(UNITS))
        self.register_buffer("count", torch.zeros(()))
        self.kept: Tensor
        self.count: Tensor

    def hidden(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def on_hidden(change: Callable[["Coded", Tensor], Tensor]) -> Code:
    """The usual network with a change of its hidden layer."""
    return lambda n, x: n.last(change(n, n.hidden(x)))


def through_list(n: Coded, h: Tensor) -> Tensor:
    n.seen.append(h.detach())
    return h + (n.seen[-2].mean() if len(n.seen) > 1 else 0)


def through_global(n: Coded, h: Tensor) -> Tensor:
    before, KEPT[str(id(n))] = KEPT.get(str(id(n)), h.detach().mean()), h.detach().mean()
    return h + before


def by_calls(n: Coded, h: Tensor) -> Tensor:
    n.calls += 1
    return h * (1 + 0.1 * n.calls)


def alternating(n: Coded, h: Tensor) -> Tensor:
    n.calls = 1 - n.calls
    return h if n.calls else -h


def counted(n: Coded, h: Tensor) -> Tensor:
    n.count += 1
    return h + n.count


def averaged(n: Coded, h: Tensor) -> Tensor:
    n.kept.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return h - n.kept


def replaced(n: Coded, h: Tensor) -> Tensor:
    before, n.kept = n.kept, h.detach().mean(0)
    return h + before


def drifting(n: Coded, h: Tensor) -> Tensor:
    with torch.no_grad():
        n.last.bias += h.mean()
    return h


def trained_mode(n: Coded, h: Tensor) -> Tensor:
    n.running.train()
    return n.running(h)


def one_by_one(n: Coded, h: Tensor) -> Tensor:
    rows = [h[0]]
    for row in h[1:]:
        rows.append(row + 0.5 * rows[-1])
    return torch.stack(rows)


def kept_row(n: Coded, h: Tensor) -> Tensor:
    h = h.clone()
    h[1:] += h[:1]
    return h


def drawn(n: Coded, h: Tensor) -> Tensor:
    return h + torch.randn(h.shape)


def smaller_batches(n: Coded, h: Tensor) -> Tensor:
    return h if len(h) <= 3 else h.flip(0)


#: Changes of the hidden layer that mix the rows of a batch.
MIXED: dict[str, Callable[[Coded, Tensor], Tensor]] = {
    "mean": lambda n, h: h - h.mean(0),
    "a little of the mean": lambda n, h: h + 1e-5 * h.mean(0),
    "a little of earlier rows": lambda n, h: h + 1e-6 * h.cumsum(0),
    "max": lambda n, h: h / (1 + h.amax(0)),
    "min": lambda n, h: h - h.amin(0),
    "sum": lambda n, h: h + h.sum(0),
    "median": lambda n, h: h - h.median(0).values,
    "std": lambda n, h: h / (1 + h.std(0, unbiased=False)),
    "whole mean": lambda n, h: h - h.mean(),
    "whole norm": lambda n, h: h / (1 + h.norm()),
    "largest of all": lambda n, h: h / (1 + h.max()),
    "sort": lambda n, h: h.sort(0).values,
    "cumsum": lambda n, h: h.cumsum(0),
    "cummax": lambda n, h: h.cummax(0).values,
    "flip": lambda n, h: h.flip(0),
    "roll": lambda n, h: h.roll(1, 0),
    "first row": lambda n, h: h + h[:1],
    "last row": lambda n, h: h + h[-1:],
    "second row": lambda n, h: h + h[min(1, len(h) - 1)],
    "softmax": lambda n, h: h.softmax(0),
    "log_softmax": lambda n, h: h.log_softmax(0),
    "length": lambda n, h: h / len(h),
    "root of the length": lambda n, h: h * h.shape[0] ** 0.5,
    "branch on the length": lambda n, h: h if len(h) == 1 else h - 1,
    "length above three": smaller_batches,
    "position": lambda n, h: h + torch.arange(len(h))[:, None],
    "even rows": lambda n, h: h * (torch.arange(len(h)) % 2)[:, None],
    "topk": lambda n, h: h - h.topk(1, 0).values,
    "kthvalue": lambda n, h: h - h.kthvalue(len(h), 0).values,
    "rank": lambda n, h: h + h.argsort(0).float(),
    "cov": lambda n, h: h @ torch.cov(h.T, correction=0),
    "correlations": lambda n, h: h + (h @ h.T).mean(1, keepdim=True),
    "distances": lambda n, h: h + torch.cdist(h, h).sum(1, keepdim=True),
    "attention": lambda n, h: n.attention(h[:, None], h[:, None], h[:, None])[0][:, 0],
    "scaled attention": lambda n, h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "GRU": lambda n, h: n.gru(h)[0],
    "convolution": lambda n, h: n.along(h.T[None])[0].T,
    "BatchNorm without statistics": lambda n, h: n.normal(h) if len(h) > 1 else h,
    "batch_norm in training": lambda n, h: F.batch_norm(h, None, None, training=True) if len(h) > 1 else h * 0,
    "training mode": trained_mode,
    "normalize": lambda n, h: F.normalize(h, dim=0),
    "reshape": lambda n, h: h.reshape(UNITS, -1).T.contiguous(),
    "transposed view": lambda n, h: h.T.reshape(h.shape),
    "quantile": lambda n, h: h - h.quantile(0.5, 0),
    "any": lambda n, h: h + (h > 0.3).any(0).float(),
    "logsumexp": lambda n, h: h - h.logsumexp(0),
    "diff": lambda n, h: torch.cat([h[:1], h.diff(dim=0)]),
    "index_select": lambda n, h: h[torch.arange(len(h)) // 2],
    "einsum": lambda n, h: torch.einsum("bi,cj->bi", h, h),
    "in place": kept_row,
    "recurrence of rows": one_by_one,
    "max_pool1d": lambda n, h: F.max_pool1d(h.T[None], 3, 1, 1)[0].T,
    "group_norm": lambda n, h: F.group_norm(h.T[None], 2)[0].T,
}
#: Changes of the hidden layer that keep something between calls, or draw numbers.
STATEFUL: dict[str, Callable[[Coded, Tensor], Tensor]] = {
    "list": through_list,
    "global": through_global,
    "calls": by_calls,
    "every other call": alternating,
    "counter": counted,
    "running average": averaged,
    "the last input": replaced,
    "weights": drifting,
    "dropout": lambda n, h: F.dropout(h, 0.3, training=True),
    "dropout of units": lambda n, h: F.dropout1d(h[None], 0.3, training=True)[0],
    "noise": drawn,
    "noise like": lambda n, h: h + torch.rand_like(h),
    "permutation": lambda n, h: h[:, torch.randperm(UNITS)],
    "rrelu": lambda n, h: F.rrelu(h - 0.5, training=True),
    "gumbel": lambda n, h: F.gumbel_softmax(h, dim=1),
}
REFUSED = {
    **{f"mixes: {name}": code for name, code in MIXED.items()},
    **{f"keeps: {k}": v for k, v in STATEFUL.items()},
}
WORDS = (
    r"the network (mixes the images of a batch|keeps state between calls|is not one fixed function|must give one row)"
)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", thin(REFUSED, 8))
@pytest.mark.thin(5)
def test_the_network_is_refused_before_any_method(name: str, count: int) -> None:
    with pytest.raises(InputError, match=WORDS) as caught:
        Program(Coded(on_hidden(REFUSED[name])).eval()).hold(images(count))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mixes: mean", "keeps: counter"])
@pytest.mark.thin(2)
def test_every_method_refuses_it(name: str, method: str) -> None:
    network = Coded(on_hidden(REFUSED[name])).eval()
    more: dict[str, Any] = {"norm": "l2", "sigma": 0.25, "n": 100} if method == "smoothing" else {}
    with pytest.raises(InputError, match=WORDS):
        certify(network, images(1), torch.tensor([0]), eps="0.01", methods=[method], **more)


def patches(n: Coded, x: Tensor) -> Tensor:
    tokens = x.flatten(2).reshape(len(x), 4, 4)
    return n.last(n.hidden(n.inside(tokens, tokens, tokens)[0]))


def rolled(n: Coded, x: Tensor) -> Tensor:
    return n.last(n.hidden(x.roll(1, 2).flip(3)))


def sorted_inside(n: Coded, x: Tensor) -> Tensor:
    return n.last(n.hidden(x.flatten(1).sort(1).values))


#: The same, where no graph shows it; and code that reads a number, which is for one image.
UNSEEN: dict[str, Code] = {
    "numpy": on_hidden(lambda n, h: h - torch.from_numpy(h.detach().numpy().mean(0))),
    "data": on_hidden(lambda n, h: h - h.data.mean(0)),
    "one_hot": on_hidden(lambda n, h: h + F.one_hot(h.argmax(0), len(h)).T),
}
SINGLE: dict[str, Code] = {
    "a number": on_hidden(lambda n, h: -h if float(h[0, 0]) > 0.5 else h),
    "any": on_hidden(lambda n, h: -h if (h[:, 0] > 0.5).any() else h),
}


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.thin(2)
def test_mixing_that_no_graph_shows_is_refused(name: str) -> None:
    program = Program(Coded(UNSEEN[name]).eval())
    with pytest.raises(InputError, match="the network mixes the images of a batch"):
        program.hold(images(1))


@pytest.mark.parametrize("name", SINGLE)
def test_code_for_one_image_runs_on_one_at_a_time(name: str) -> None:
    network, x = Coded(SINGLE[name]).eval(), images(5)
    program = Program(network)
    with torch.no_grad():
        assert torch.equal(program.hold(x)(x), torch.cat([network(image) for image in x.split(1)]))
    assert program.refusal is not None


#: Networks that look like some of these, and answer each image by itself.
HONEST: dict[str, Code] = {
    "InstanceNorm": lambda n, x: n.last(n.hidden(n.instance(x))),
    "instance_norm of functional": lambda n, x: n.last(n.hidden(F.instance_norm(x))),
    "GroupNorm": on_hidden(lambda n, h: n.group(h)),
    "LayerNorm": on_hidden(lambda n, h: n.layer(h)),
    "BatchNorm with statistics": on_hidden(lambda n, h: n.running(h)),
    "attention inside an image": patches,
    "GRU over the rows of an image": lambda n, x: n.last(n.ordered(x.squeeze(1))[0][:, -1]),
    "reshape inside an image": lambda n, x: n.last(n.hidden(x.view(len(x), 2, 8).transpose(1, 2).reshape(-1, 16))),
    "roll inside an image": rolled,
    "sort inside an image": sorted_inside,
    "mean of an image": lambda n, x: n.last(n.hidden(x - x.mean((1, 2, 3), keepdim=True))),
    "softmax over units": on_hidden(lambda n, h: h.softmax(1)),
    "sum over the batch of one": on_hidden(lambda n, h: torch.stack([row[None].sum(0) for row in h])),
    "dropout in eval mode": on_hidden(lambda n, h: F.dropout(h, 0.3, training=n.training)),
    "batch first and back": on_hidden(lambda n, h: h.T.contiguous().T * 2),
    "vmap": on_hidden(lambda n, h: torch.vmap(lambda row: row * row.sum())(h)),
    "scaling by the length and back": on_hidden(lambda n, h: h * len(h) / h.shape[0]),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", thin(HONEST, 4))
@pytest.mark.thin(5)
def test_an_honest_network_passes(name: str, count: int) -> None:
    network, x = Coded(HONEST[name]).eval(), images(count)
    module = Program(network).hold(x)
    with torch.no_grad():
        expected = torch.cat([network(image) for image in x.split(1)])
        assert torch.allclose(module(x), expected, atol=1e-5)
        labels = expected.argmax(1)
    found = certify(network, x, labels, eps="0.001", methods=["pgd"], steps=2, restarts=1)["pgd"]
    assert found["correct"].all(), "its own predictions are not its predictions"


@pytest.mark.parametrize("size", [1e-7, 1e-3])
def test_mixing_that_is_smaller_than_rounding_is_found_by_its_gradient(size: float) -> None:
    network = Coded(on_hidden(lambda n, h: h + size * h.amax(0))).eval()
    with pytest.raises(InputError, match=r"the logits of an image change with another image|differ by"):
        Program(network).hold(images(2))


class Chaotic(nn.Module):
    """Sums cancel that depend on the size of the batch, as the order of kernels' sums does."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.mixes = mixes
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        shift = 1e6 if len(x) > 1 else 0.0
        moved = (pixels + shift) * 3.0 - 3.0 * shift
        return self.last(moved + (pixels.mean() if self.mixes else 0.0))


def test_rounding_is_not_taken_for_mixing() -> None:
    with pytest.raises(InputError, match=r"float32 is too coarse for the network: .* so they do not mix but round"):
        Program(Chaotic().eval()).hold(images(3))
    with pytest.raises(InputError, match="mixes the images of a batch"):
        Program(Chaotic(mixes=True).eval()).hold(images(3))


class OnlyFloat32(Chaotic):
    """Cannot run in float64, so nothing shows that it rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(1, 1).float() @ x.flatten(1)[:1, :1]


def test_a_network_that_does_not_run_in_float64_is_refused_too() -> None:
    with pytest.raises(InputError, match="mixes the images of a batch"):
        Program(OnlyFloat32().eval()).hold(images(3))
