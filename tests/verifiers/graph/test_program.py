"""A program is captured once; what it says about the network is remembered, also a refusal."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import BY_NAME
from verifiers.bound_propagation import engines
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Epsilon
from verifiers.core.question import Question
from verifiers.graph import program as programs
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
