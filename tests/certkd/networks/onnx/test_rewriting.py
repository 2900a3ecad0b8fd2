"""The parts of reading a file: what is weight and what is number, which branch is taken, what would be converted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from certkd.networks.onnx.branches import fold_branches
from certkd.networks.onnx.inline import inline_functions
from certkd.networks.onnx.live import bodies, keep_live, reads
from certkd.networks.onnx.steps import is_weight
from certkd.networks.onnx.upgrade import other_floats
from tests.certkd.networks.onnx.exporters import n, value
from tests.certkd.networks.onnx.test_original import VERSIONS, either
from verifiers.core.errors import InputError


def model(nodes: Sequence[Any], output: str = "y", kind: int = TensorProto.FLOAT, **weights: np.ndarray) -> Any:
    image, logits = (helper.make_tensor_value_info(name, kind, None) for name in ("x", output))
    constants = [numpy_helper.from_array(given, name) for name, given in weights.items()]
    return helper.make_model(helper.make_graph(list(nodes), "test", [image], [logits], constants))


def kinds(made: Any) -> list[str]:
    return [node.op_type for node in made.graph.node]


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        (np.ones(3, np.float32), "Mul", True),
        (np.ones(1, np.float32), "Mul", False),
        (np.ones(1, np.float32), "Conv", True),
        (np.ones(4, np.float32), "Resize", False),
        (np.ones(3, np.int64), "Mul", False),
        (None, "Conv", False),
    ],
)
def test_arrays_of_floats_are_weights(given: Any, kind: str, expected: bool) -> None:
    assert is_weight(given, kind) is expected


def asking(answers: dict[str, bool | None], asked: list[str]) -> Any:
    def decide(nodes: Sequence[Any], weights: Sequence[Any], name: str) -> bool | None:
        asked.append(name)
        return answers[name]

    return decide


def test_conditions_are_asked_for_once_and_constants_are_not() -> None:
    inner = either("c", "r", n("Exp", "x", "r"), n("Neg", "x", "r"))
    nodes = [
        value("yes", np.array([True])),
        either("yes", "a", inner, n("Relu", "x", "r")),
        either("c", "y", n("Tanh", "a", "r"), n("Sigmoid", "a", "r")),
    ]
    for answer, expected in ((True, ["Exp", "Tanh"]), (False, ["Neg", "Sigmoid"])):
        made, asked = model(nodes), []
        assert fold_branches(made, "f", asking({"c": answer}, asked)) == ["yes", "c", "c"]
        assert asked == ["c"] and [kind for kind in kinds(made) if kind not in ("Constant", "Identity")] == expected


def test_an_unknown_condition_stays() -> None:
    made = model([either("c", "y", n("Exp", "x", "r"), n("Neg", "x", "r"))])
    fold_branches(made, "f", asking({"c": None}, []))
    assert kinds(made) == ["If"]


def test_a_branch_with_too_few_results_is_damaged() -> None:
    node = either("yes", "y", n("Exp", "x", "r"), n("Neg", "x", "r"))
    node.output.append("more")
    with pytest.raises(InputError, match="f is damaged: a branch gives 1 values, not 2"):
        fold_branches(model([node], yes=np.array(True)), "f", asking({}, []))


def test_names_in_the_branches_of_a_function_are_those_of_its_call() -> None:
    body = [n("Not", "k", "c"), n("Exp", "a", "x"), either("c", "b", n("Mul", "a x", "r"), n("Neg", "k", "r"))]
    made = model([n("f", "x k", "h", domain="pkg"), n("f", "h k", "y", domain="pkg")])
    made.ClearField("opset_import")
    made.opset_import.extend(VERSIONS)
    made.functions.append(helper.make_function("pkg", "f", ["a", "k"], ["b"], body, VERSIONS))
    inline_functions(made, "f")
    branches = [node for node in made.graph.node if node.op_type == "If"]
    first, second = (bodies(node)[1].node[0] for node in branches)  # else comes first
    assert first.input[0] == "x" and second.input[0] == "h", "its first argument"
    own = first.input[1], second.input[1]
    assert len({*own, "x", "h"}) == 4, f"its own value x has other names in each call, not {own}"
    assert [node.output[0] for node in branches] == ["h", "y"] and bodies(branches[1])[0].node[0].input[0] == "k"
    assert bodies(branches[0])[0].output[0].name in list(reads(branches[0]))


def test_nodes_without_use_are_left_out() -> None:
    made = model([n("Exp", "x", "a"), n("Neg", "x", "y")])
    keep_live(made.graph)
    assert kinds(made) == ["Neg"]
    damaged = model([n("Exp", "x", "a"), n("Neg", "x", "y"), n("Relu", "x", "")])
    keep_live(damaged.graph)
    assert kinds(damaged) == ["Exp", "Neg", "Relu"], "what is damaged is refused later, and not hidden"


def test_other_floats_of_a_file() -> None:
    assert other_floats(model([n("Neg", "x", "y")], w=np.ones(2, np.float32))) == []
    assert other_floats(model([n("Neg", "x", "y")], kind=TensorProto.DOUBLE)) == ["float64"]
    assert other_floats(model([n("Mul", "x w", "y")], w=np.ones(2, np.float16))) == ["float16"]
    assert other_floats(model([value("k", np.float64(2)), n("Mul", "x k", "y")])) == ["float64"]
    assert other_floats(model([n("Cast", "x", "a", to=TensorProto.BFLOAT16), n("Cast", "a", "y", to=1)])) == [
        "bfloat16"
    ]
