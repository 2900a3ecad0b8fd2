"""Networks whose Python code does what no graph shows are never proved; constants in branches are no obstacle."""

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting as bound_early
from torchvision import transforms

from tests.certifying import certify
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.certify import certify as certify_network
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.graph.watch import blame, watch

#: The code below turns the sign of all logits in a slab of this width; no sampling would find it.
LOW, HIGH = 0.515, 0.515001
IMAGES = torch.tensor([[0.5, 0.6], [0.3, 0.7]])
Forward = Callable[["Planted", Tensor], Tensor]


class Planted(nn.Module):
    """A network of two inputs and two classes, with code around it."""

    def __init__(self, code: Forward) -> None:
        super().__init__()
        self.code = code
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in self.inner.parameters():
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.5)
        self.register_buffer("scale", torch.tensor([1.0, 1.0]))
        self.limit = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def turned(network: Planted, x: Tensor, inside: Any) -> Tensor:
    return -network.inner(x) if inside else network.inner(x)


def tried(network: Planted, x: Tensor) -> Tensor:
    try:
        inside = LOW < float(x[0, 0]) < HIGH
    except (TypeError, RuntimeError, ValueError):  # as a network that hides from its capture would
        inside = False
    return turned(network, x, inside)


def counted(network: Planted, x: Tensor) -> Tensor:
    while float(x.max()) > 2:
        x = x / 2
    return network.inner(x)


def matched(network: Planted, x: Tensor) -> Tensor:
    match int(x[0, 0] * 10):
        case 9:
            return -network.inner(x)
        case _:
            return network.inner(x)


def by_numpy(network: Planted, x: Tensor) -> Tensor:
    values = x.detach().numpy()[:, :1]
    return network.inner(x) * torch.from_numpy(1.0 - 2 * ((values > LOW) & (values < HIGH))).to(x.dtype)


def by_data(network: Planted, x: Tensor) -> Tensor:
    inside = (x.data[:, :1] > LOW) & (x.data[:, :1] < HIGH)
    return network.inner(x) * (1 - 2 * inside.to(x.dtype))


def by_list(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, any(LOW < row[0] < HIGH for row in x.tolist()))


def by_loop(network: Planted, x: Tensor) -> Tensor:
    signs = [-1.0 if LOW < row[0] < HIGH else 1.0 for row in x]
    return network.inner(x) * torch.tensor(signs)[:, None]


def by_apply(network: Planted, x: Tensor) -> Tensor:
    first = x[:, :1].clone().apply_(lambda value: -1.0 if LOW < value < HIGH else 1.0)
    return network.inner(x) * first


def by_copy(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, LOW < copy.deepcopy(x)[0, 0].item() < HIGH)


def by_text(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, f"{x[0, 0]:.4f}" == "0.5150")


def by_range(network: Planted, x: Tensor) -> Tensor:
    for _ in range(int(x.sum() > 1.99)):
        x = 1 - x
    return network.inner(x)


def by_sorting(network: Planted, x: Tensor) -> Tensor:
    first, second = sorted([x[:, 0], x[:, 1]], key=lambda column: column.sum())
    return network.inner(torch.stack([first, second], 1))


def by_length(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, len(x[:, 0][(x[:, 0] > LOW) & (x[:, 0] < HIGH)]) > 0)


def by_places(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, torch.nonzero((x[:, 0] > LOW) & (x[:, 0] < HIGH)).shape[0] > 0)


def by_dictionary(network: Planted, x: Tensor) -> Tensor:
    return network.inner(x) * {True: -1.0, False: 1.0}[bool((x[:, 0] > 0.95).any())]


def by_assertion(network: Planted, x: Tensor) -> Tensor:
    assert x.min() >= 0, "pixels are positive"
    return network.inner(x)


def by_unique(network: Planted, x: Tensor) -> Tensor:
    return turned(network, x, len(torch.unique(x)) == 1)


def inside_of(x: Tensor) -> Tensor:
    return ((x[:, 0] > LOW) & (x[:, 0] < HIGH)).any()


#: Code that reads values of the image where no operator of torch does.
READING: dict[str, Forward] = {
    "if float": lambda n, x: turned(n, x, LOW < float(x[0, 0]) < HIGH),
    "if item": lambda n, x: turned(n, x, LOW < x[0, 0].item() < HIGH),
    "if int": lambda n, x: turned(n, x, int(x[0, 0] * 1e6) == 515000),
    "if tensor": lambda n, x: turned(n, x, inside_of(x)),
    "if bool": lambda n, x: turned(n, x, bool(inside_of(x))),
    "if sum": lambda n, x: -n.inner(x) if x.sum() > 1.999 else n.inner(x),
    "if not all": lambda n, x: turned(n, x, not (x < 0.999).all()),
    "detached": lambda n, x: turned(n, x, LOW < float(x.detach()[0, 0]) < HIGH),
    "double": lambda n, x: turned(n, x, LOW < x.double()[0, 0].item() < HIGH),
    "max of Python": lambda n, x: n.inner(x) * max(x[0, 0], x[0, 1]),
    "min of Python": lambda n, x: n.inner(x) * min(x[0, 0], x[0, 1]),
    "and": lambda n, x: turned(n, x, x[0, 0] > LOW and x[0, 0] < HIGH),
    "or": lambda n, x: turned(n, x, x[0, 0] > 0.999 or x[0, 1] < 0.001),
    "chained": lambda n, x: turned(n, x, LOW < x[0, 0] < HIGH),
    "in": lambda n, x: turned(n, x, 0.515 in x),
    "is_nonzero": lambda n, x: turned(n, x, torch.is_nonzero(inside_of(x))),
    "equal": lambda n, x: turned(n, x, torch.equal(x, x.round())),
    "allclose": lambda n, x: turned(n, x, torch.allclose(x[:, 0], torch.tensor(0.515), atol=1e-6)),
    "index": lambda n, x: n.inner(x) * [1.0, -1.0][inside_of(x).long()],
    "complex": lambda n, x: turned(n, x, LOW < complex(x[0, 0]).real < HIGH),
    "scaled by a number": lambda n, x: n.inner(x) * float(x.max()),
    "divided by a number": lambda n, x: n.inner(x / x.norm().item()),
    "shifted by a number": lambda n, x: n.inner(x - x.mean().item()),
    "argmax": lambda n, x: turned(n, x, int(x.argmax()) == 1),
    "round": lambda n, x: turned(n, x, round(float(x[0, 0]), 6) == 0.515),
    "after a layer": lambda n, x: turned(n, x, float(n.inner(x)[0, 0]) > 1e3),
    "in a hidden layer": lambda n, x: (
        n.inner[2](turned(n, x, False).new_zeros(1, 8) + n.inner[0](x).relu())
        * (-1 if n.inner[0](x).max() > 1e3 else 1)
    ),
    "np.asarray": lambda n, x: turned(n, x, LOW < np.asarray(x)[0, 0] < HIGH),
    "np.max": lambda n, x: turned(n, x, np.max(x.numpy()) > 0.999),
    "cpu numpy": lambda n, x: turned(n, x, LOW < x.detach().cpu().numpy()[0, 0] < HIGH),
    "storage": lambda n, x: turned(n, x, x.untyped_storage().tolist()[0] == 1),
    "pointer": lambda n, x: turned(n, x, x.data_ptr() == 0),
    "repr": lambda n, x: turned(n, x, "0.5150" in repr(x)),
    "str": lambda n, x: turned(n, x, "0.5150" in str(x)),
    "where without values": lambda n, x: turned(n, x, len(torch.where(x[:, 0] > 0.999)[0]) > 0),
    "masked_select": lambda n, x: turned(n, x, torch.masked_select(x, x > 0.999).numel() > 0),
    "try": tried,
    "while": counted,
    "match": matched,
    "numpy": by_numpy,
    "data": by_data,
    "list": by_list,
    "loop": by_loop,
    "apply": by_apply,
    "deepcopy": by_copy,
    "format": by_text,
    "range": by_range,
    "sorted": by_sorting,
    "length of a selection": by_length,
    "nonzero": by_places,
    "dictionary": by_dictionary,
    "assert": by_assertion,
    "unique": by_unique,
}


@pytest.mark.parametrize("name", READING)
@pytest.mark.thin(5)
def test_code_that_reads_the_image_is_named_and_never_proved(name: str) -> None:
    program = Program(Planted(READING[name]).eval())
    with pytest.raises(Unsupported, match=r"the network cannot be captured: .*\(test_one_program\.py:\d+: ") as caught:
        program.capture(IMAGES)
    assert "\n" not in str(caught.value)
    for engine in (Native, AutoLirpa):
        with pytest.raises(Unsupported, match="the network cannot be captured"):
            engine(program, IMAGES)


@pytest.mark.parametrize("name", ["if float", "data", "numpy", "while", "try"])
@pytest.mark.thin(2)
def test_what_cannot_be_captured_is_attacked_and_not_certified(name: str) -> None:
    network = Planted(READING[name]).eval()
    with torch.no_grad():
        labels = network(IMAGES[:1]).argmax(1).repeat(2)
    methods = ["pgd", "ibp", "crown", "lipschitz"]
    found = certify(network, IMAGES, labels, eps="0.05", methods=methods, steps=3, restarts=1)
    assert (found["pgd"]["status"] != Status.UNSUPPORTED).all(), "a network of Python code can be attacked"
    for method in methods[1:]:
        right = found[method]["predicted"] == found[method]["label"]
        assert (found[method]["status"][right] == Status.UNSUPPORTED).all() and (found[method]["radius"] == 0).all()
        assert "test_one_program.py:" in found[method].attributes["reason"]


def hooked(place: str) -> nn.Module:
    """A network whose hook turns the logits."""
    network = Planted(lambda n, x: n.inner(x))
    if place == "output":
        network.inner.register_forward_hook(lambda m, given, out: -out if LOW < float(given[0][0, 0]) < HIGH else out)
    else:
        network.inner[0].register_forward_pre_hook(
            lambda m, given: (1 - given[0],) if LOW < float(given[0][0, 0]) < HIGH else given
        )
    return network


class Straight(torch.autograd.Function):
    """A function with a gradient of its own, and a branch on values."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return -x if LOW < float(x[0, 0]) < HIGH else x * 1.0

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@pytest.mark.parametrize(
    "network",
    [
        hooked("output"),
        hooked("input"),
        Planted(lambda n, x: n.inner(Straight.apply(x))),  # type: ignore[no-untyped-call]
    ],
    ids=["hook on the output", "hook on the input", "autograd function"],
)
def test_hooks_and_functions_of_autograd_are_watched(network: nn.Module) -> None:
    with pytest.raises(Unsupported, match="reads values of the image in Python"):
        Program(network.eval()).capture(IMAGES)


#: Code that does something else when it is captured, with gradients, or by chance.
MODES: dict[str, Forward] = {
    "is_grad_enabled": lambda n, x: turned(n, x, torch.is_grad_enabled() and bool(n.limit < 1)),
    "inference mode": lambda n, x: turned(n, x, torch.is_inference_mode_enabled()),
    "is_exporting, bound early": lambda n, x: turned(n, x, not bound_early()),
    "private is_compiling": lambda n, x: turned(n, x, torch._utils.is_compiling()),
    "random": lambda n, x: turned(n, x, random.random() < 1e-9),
    "randint": lambda n, x: turned(n, x, random.randint(1, 10**9) == 7),
    "numpy random": lambda n, x: turned(n, x, np.random.rand() < 1e-9),
    "torch.rand": lambda n, x: turned(n, x, False) + 0 * torch.rand(1),
    "dropout": lambda n, x: F.dropout(n.inner(x), 1e-9, training=True),
    "bernoulli": lambda n, x: n.inner(x) * (1 - 2 * torch.bernoulli(torch.zeros(1))),
    "clock": lambda n, x: turned(n, x, time.time() < 0),
    "perf_counter": lambda n, x: turned(n, x, time.perf_counter() < 0),
}


@pytest.mark.parametrize("name", MODES)
def test_code_that_depends_on_mode_time_or_chance_is_never_proved(name: str) -> None:
    with pytest.raises(Unsupported, match=r"the network cannot be captured: .*(asks|draws random numbers)"):
        Program(Planted(MODES[name]).eval()).capture(IMAGES)


def masked(x: Tensor) -> Tensor:
    return 1 - 2 * ((x[:, :1] > LOW) & (x[:, :1] < HIGH)).to(x.dtype)


#: Code of which the program is what is deployed: float32, eval mode, not captured, without gradients.
DEPLOYED: dict[str, Forward] = {
    "dtype": lambda n, x: n.inner(x) if x.dtype == torch.float64 else n.inner(x) * masked(x),
    "element size": lambda n, x: n.inner(x) if x.element_size() == 8 else n.inner(x) * masked(x),
    "is_exporting": lambda n, x: n.inner(x) if torch.compiler.is_exporting() else n.inner(x) * masked(x),
    "is_compiling": lambda n, x: n.inner(x) if torch.compiler.is_compiling() else n.inner(x) * masked(x),
    "is_tracing": lambda n, x: n.inner(x) if torch.jit.is_tracing() else n.inner(x) * masked(x),
    "training": lambda n, x: n.inner(x) if n.training else n.inner(x) * masked(x),
    "where": lambda n, x: torch.where(masked(x) > 0, n.inner(x), -n.inner(x)),
    "sign": lambda n, x: n.inner(x) * torch.sign(masked(x)),
    "heaviside": lambda n, x: n.inner(x) * (1 - 2 * torch.heaviside(x[:, :1] - 0.99, torch.zeros(1))),
}


@pytest.mark.parametrize("name", DEPLOYED)
@pytest.mark.thin(4)
def test_the_program_is_what_is_deployed(name: str) -> None:
    """The slab is in the program: its sign is turned there, and no engine bounds it as if it were not."""
    program = Program(Planted(DEPLOYED[name]).eval())
    try:
        program.capture(IMAGES)
    except Unsupported:
        pass
    else:
        point = torch.tensor([[0.5150005, 0.6]])
        with torch.no_grad():
            assert torch.allclose(program.module(point), program.given(point)), "the program has another slab"
    for engine in (Native, AutoLirpa):
        with pytest.raises((Unsupported, Contradiction)):
            engine(program, IMAGES)


def test_a_network_that_looks_for_its_capture_is_compared_with_its_program() -> None:
    def code(network: Planted, x: Tensor) -> Tensor:
        return (
            network.inner(x) if type(x) is not torch.Tensor else network.inner(x) * (1 - 2 * (x[:, :1] > 0.8).float())
        )

    network = Planted(code).eval()
    labels = network(IMAGES).argmax(1)
    found = certify(network, IMAGES, labels, eps="0.01", methods=["pgd", "crown"], steps=2, restarts=1)
    assert (found["crown"]["radius"] == 0).all() and "other operators" in found["crown"].attributes["reason"]
    assert found["pgd"].attributes.get("reason") is None


# Constants in branches


class Constants(nn.Module):
    """Branches on constants, in every spelling."""

    def __init__(self, read: Callable[["Constants"], Any]) -> None:
        super().__init__()
        self.read, self.last = read, nn.Linear(2, 2)
        self.register_buffer("std", torch.tensor([0.5, 0.25]))
        self.std: Tensor
        self.plain = torch.tensor([1.0, 2.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x / self.std * (2.0 if self.read(self) else 3.0))


BRANCHES: dict[str, Callable[[Constants], Any]] = {
    "any": lambda n: (n.std == 0).any(),
    "bool": lambda n: bool(n.std.sum() > 0),
    "item": lambda n: n.std[0].item() > 0.1,
    "float": lambda n: float(n.std.max()) < 0.1,
    "int": lambda n: int(n.plain[1]) == 2,
    "made inside": lambda n: torch.tensor([0.0, 1.0]).any(),
    "list": lambda n: n.plain.tolist() == [1.0, 2.0],
    "weights": lambda n: n.last.weight.abs().max() > 100,
    "shape": lambda n: n.std.shape[0] == 2,
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.thin(2)
def test_a_branch_on_constants_is_captured_as_it_runs(name: str) -> None:
    network = Constants(BRANCHES[name]).eval().requires_grad_(False)
    found = watch(network, IMAGES[:1])
    assert found.hidden is None, found.hidden
    engine = Native(network, IMAGES)
    assert torch.allclose(engine.model(IMAGES.double()).float(), network(IMAGES), atol=1e-5)


def test_normalisation_of_torchvision_is_a_layer() -> None:
    first = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    network = nn.Sequential(first, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = certify(network, x, network(x).argmax(1), eps=0.001, methods=["crown"])["crown"]
    assert (found["status"] == Status.CERTIFIED).all(), found.attributes.get("reason")


# The program itself


def test_its_hash_tells_functions_with_the_same_weights_apart() -> None:
    codes: list[Forward] = [
        lambda n, x: n.inner(x),
        lambda n, x: n.inner(x * 2),
        lambda n, x: n.inner(x * 3),
        lambda n, x: n.inner(x).abs(),
        lambda n, x: n.inner(1 - x),
    ]
    programs = [Program(Planted(code).eval()) for code in (*codes, codes[0])]
    for program in programs:
        program.capture(IMAGES)
    hashes = [program.sha256 for program in programs]
    assert len(set(hashes)) == len(codes) and hashes[0] == hashes[-1], hashes
    with torch.no_grad():
        programs[-1].given.inner[0].weight[0, 0] += 1e-7  # type: ignore[index, union-attr]
    again = Program(programs[-1].given)
    again.capture(IMAGES)
    assert again.sha256 != hashes[0], "a weight is not part of the hash"


def test_a_certificate_names_its_program() -> None:
    network = nn.Sequential(nn.Linear(2, 2)).eval()
    program = Program(network)
    program.capture(IMAGES)
    found = certify(network, IMAGES, network(IMAGES).argmax(1), eps=0.01, methods=["crown"])
    assert found.attributes["program_sha256"] == program.sha256 and len(program.sha256) == 64


def residual(n: Planted, x: Tensor) -> Tensor:
    hidden = n.inner[0](x)
    hidden += hidden.relu()
    return n.inner[2](F.relu(hidden, inplace=True))


def viewed(n: Planted, x: Tensor) -> Tensor:
    return n.inner(x.view(x.size(0), -1)).view(x.size(0), 2)


def moved(n: Planted, x: Tensor) -> Tensor:
    return n.inner(x.t().contiguous().t()) + n.inner(x).flip(1)


def written(n: Planted, x: Tensor) -> Tensor:
    y = x.clone()
    part = y[:, :1]
    part.mul_(2.0)  # also changes y
    return n.inner(y)


@pytest.mark.parametrize("code", [residual, viewed, moved, written], ids=lambda code: code.__name__)
def test_a_program_answers_every_image_alone_and_together(code: Forward) -> None:
    network = Planted(code).eval()
    program = Program(network)
    program.capture(IMAGES)
    x = torch.rand(7, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = torch.cat([network(image) for image in x.split(1)])
        assert torch.allclose(program.module(x), expected, atol=1e-6)
        assert torch.allclose(program.exact(x.double()).float(), expected, atol=1e-5)
    if not isinstance(program.module, nn.Sequential):
        point = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(program.module(point)[:, 0].sum(), point)
        (own,) = torch.autograd.grad(network(point)[:, 0].sum(), point)
        assert torch.allclose(gradient, own, atol=1e-5), "attacks follow another gradient"


def test_the_network_is_left_as_it_was() -> None:
    network = Planted(residual).eval()
    state, text = copy.deepcopy(network.state_dict()), repr(network)
    Program(network).hold(IMAGES)
    assert repr(network) == text and all(
        torch.equal(value, state[name]) for name, value in network.state_dict().items()
    )
    assert all(weights.requires_grad for weights in network.parameters())


def test_the_line_of_an_error_is_the_networks_own() -> None:
    def fails(network: Planted, x: Tensor) -> Tensor:
        return network.inner(x.reshape(5, 5))

    with pytest.raises(Unsupported, match=r"fails on one image \(test_one_program\.py:\d+: .*reshape"):
        Program(Planted(fails).eval()).capture(IMAGES)
    try:
        raise InputError("here")
    except InputError as error:
        assert "test_one_program.py" in blame(error)


def test_a_script_is_attacked_and_never_proved() -> None:
    network = torch.jit.script(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))).eval()
    found = certify(network, IMAGES, network(IMAGES).argmax(1), eps=0.01, methods=["pgd", "crown"])
    assert (found["pgd"]["status"] != Status.UNSUPPORTED).all() and (
        found["crown"]["status"] == Status.UNSUPPORTED
    ).all()
    assert "TorchScript" in found["crown"].attributes["reason"]


def test_images_that_require_gradients_are_images() -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    given, labels = IMAGES.clone().requires_grad_(True), network(IMAGES).argmax(1)
    found = certify_network(network, (given, labels), CertifyConfig(eps="0.01", methods=("pgd",)))
    assert (found["pgd"]["status"] != Status.ERROR).all() and given.grad is None
