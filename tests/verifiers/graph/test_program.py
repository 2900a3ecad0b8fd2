"""A program is captured once; what it says about the network is remembered, also a refusal."""

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.zoo import BY_NAME
from verifiers.bound_propagation import engines
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Epsilon
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.graph import program as programs
from verifiers.graph.executable import Images
from verifiers.graph.program import Program
from verifiers.lipschitz.layers import Network


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    count: Counter[str] = Counter()
    honest = programs.graph_of

    def counted(*given: Any) -> Any:
        count["graph"] += 1
        return honest(*given)

    monkeypatch.setattr(programs, "graph_of", counted)
    return count


def test_methods_share_one_graph_and_one_engine(captures: Counter[str]) -> None:
    program, x = Program(BY_NAME["mlp"].network()), BY_NAME["mlp"].images(2)
    question = Question(Epsilon.parse(0.01), arithmetic=Arithmetic.REAL)
    built = {
        method: engines.build(program, x, "auto", question, method=method)[0]
        for method in ("ibp", "crown-ibp", "crown")
    }
    layers = Network.prepare(program, x)
    assert captures["graph"] == 1, f"captured {captures['graph']} times"
    assert {built["ibp"], built["crown-ibp"], built["crown"], layers.native} == {built["ibp"]}, "several engines"
    assert Network.prepare(program, x) is layers


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_a_refusal_is_remembered(captures: Counter[str]) -> None:
    program, x = Program(Sine().eval()), torch.rand(2, 3)
    said = []
    for _ in range(2):
        with pytest.raises(Unsupported, match="sin") as refused:
            program.graph(x)
        said.append(str(refused.value))
    assert captures["graph"] == 1 and said[0] == said[1]


def test_a_failure_that_says_nothing_about_the_network_is_tried_again() -> None:
    program, tried = Program(nn.Identity()), []

    def make() -> int:
        tried.append(1)
        if len(tried) == 1:
            raise MemoryError
        return 7

    with pytest.raises(MemoryError):
        program.once("seven", make)
    assert [program.once("seven", make) for _ in range(2)] == [7, 7] and len(tried) == 2


def test_the_exact_copy_is_frozen_and_in_float64() -> None:
    network = BY_NAME["cnn"].network()
    program = Program(network)
    assert Program.of(program) is program and Program.of(network).module is network
    with pytest.raises(RuntimeError, match="after it was captured"):
        _ = program.exact
    program.capture(BY_NAME["cnn"].images(2))
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in program.exact.parameters())
    assert all(p.dtype == torch.float32 for p in network.parameters()), "the module itself was changed"
    assert program.device == torch.device("cpu")


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x).sum(2)


class Detour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / 2


def test_advice_of_torch_about_its_own_speed_reaches_nobody() -> None:
    program, x = Program(Attending().eval()), torch.rand(3, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = program.capture(x).module
        torch.testing.assert_close(module(x), Attending()(x))
    assert isinstance(module, Images) and module.together is None, "it is not mapped over the images"


def test_the_forms_of_a_program_share_their_weights() -> None:
    found = Program(Halved().eval()).capture(torch.rand(2, 2))
    for module in (found.module, found.exact):
        assert isinstance(module, Images) and module.together is not None
        assert [id(weight) for weight in module.together.parameters()] == [
            id(weight) for weight in module.program.parameters()
        ]
    assert found.exact_single is found.exact.program
    plain = Program(BY_NAME["mlp"].network()).capture(BY_NAME["mlp"].images(2))
    assert plain.exact_single is plain.exact


def test_an_operator_without_a_derivative_is_refused_by_attacks() -> None:
    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.heaviside(x - 0.5, torch.zeros(1))

    x = torch.rand(2, 3)
    program = Program(Steps().eval())
    program.hold(x)
    with pytest.raises(Unsupported, match=r"the network has no gradient to attack by.*heaviside is not implemented"):
        program.check_gradient(x)
    rows = certify(Steps().eval(), x, Steps()(x).argmax(1), eps="0.1", methods=("pgd", "ibp"))
    assert [method.count(Status.UNSUPPORTED) for method in rows] == [2, 2]


def test_a_network_without_a_gradient_is_refused_by_attacks() -> None:
    program, x = Program(Detour().eval()), torch.rand(2, 3)
    program.hold(x)
    with pytest.raises(Unsupported, match=r"^the network has no gradient to attack by: RuntimeError: element 0 of"):
        program.check_gradient(x)
