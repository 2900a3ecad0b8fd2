"""Weight files as people save them: keys, averages, lists, prefixes, masks, counters; and what a refusal says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as prune
from torch import Tensor, nn

from certkd.networks import checkpoint, stored
from certkd.networks.builders import ModelSpec, build
from certkd.networks.holding import weights_in
from certkd.networks.names import fitted
from certkd.networks.stored import Stored
from verifiers.core.errors import InputError

SPEC = ModelSpec(name="certkd:resnet", options={"depth": 8, "width": 2}, classes=3, shape=(1, 4, 4))
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    """The state dict of a small network with batch normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(SPEC)
    for name, value in model.network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
    return dict(model.network.state_dict())


def saved(content: Any, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return path


def same(path: Path, state: State, key: str | None = None) -> checkpoint.Checkpoint:
    """Load a file, and compare every weight."""
    known = checkpoint.load(path, architecture=SPEC, key=key)
    found = known.model.network.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
    return known


# Names

PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.",
    "net.",
    "1.",
    "1.module.",
    "model.module.",
    "backbone.",
    "module.model.net.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_taken_off(prefix: str, state: State, tmp_path: Path) -> None:
    same(saved({prefix + name: value for name, value in state.items()}, tmp_path), state)


def test_parts_of_wrappers_inside_a_name_are_taken_off(state: State, tmp_path: Path) -> None:
    def wrapped(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"{first}._orig_mod.{rest}"

    same(saved({wrapped(name): value for name, value in state.items()}, tmp_path), state)


CHANGED: dict[str, Callable[[State], State]] = {
    "an averaged model": lambda s: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(3)},
    "no counters of batches": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "a profiler's counters": lambda s: {**s, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "plain numbers beside them": lambda s: {**s, "epoch": 3, "best": 0.5, "arch": "resnet"},
    "counters, prefixes and no batches": lambda s: {
        **{f"module.{k}": v for k, v in s.items() if "num_batches" not in k},
        "module.total_ops": torch.zeros(1),
    },
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_training_leaves_in_a_file_is_no_obstacle(name: str, state: State, tmp_path: Path) -> None:
    changed = CHANGED[name](state)
    counters = {k: torch.zeros_like(v) for k, v in state.items() if "num_batches" in k}
    expected = {**state, **counters} if "batches" in name else state
    same(saved(changed, tmp_path), expected)


def test_pruning_masks_are_applied(tmp_path: Path) -> None:
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [5]}, classes=3, shape=(1, 2, 2))
    model = build(spec)
    for module in model.network.modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", amount=0.5)
    x = torch.rand(4, 1, 2, 2)
    expected = model.network(x)
    pruned = model.network.state_dict()
    assert "1.weight_orig" in pruned and "1.weight" not in pruned
    known = checkpoint.load(saved({"net": pruned}, tmp_path), architecture=spec)
    assert torch.equal(known.model.network(x), expected)
    assert float((known.model.network.state_dict()["1.weight"] == 0).double().mean()) == 0.5


def test_names_that_would_collide_are_kept() -> None:
    value = Stored((2,), torch.float32, lambda: torch.ones(2))
    state = {"module.a": value, "a": value}
    assert fitted(state, {"a": torch.ones(2), "b": torch.ones(2)}).keys() == state.keys()


# Keys


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "weights", "params"])
def test_the_usual_keys_need_no_remark(key: str, state: State, tmp_path: Path) -> None:
    content = {key: state, "acc": 93.0, "epoch": 1, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    assert same(saved(content, tmp_path), state).remarks == ()


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda s: {"student": s, "epoch": 1}, "student"),
        (lambda s: {"state_dict_ema": s}, "state_dict_ema"),
        (lambda s: {"state_dict": [s], "err": 0.1}, "state_dict.0"),
        (lambda s: [s], "0"),
        (lambda s: {"run": {"model": s}, "args": {"lr": 0.1}}, "run.model"),
    ],
)
def test_the_only_weights_of_a_file_are_taken_and_named(
    wrap: Callable[[State], Any], key: str, state: State, tmp_path: Path
) -> None:
    (remark,) = same(saved(wrap(state), tmp_path), state).remarks
    assert f"the weights under {key!r} are taken" in remark


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
def test_an_average_beside_the_weights_is_named_and_can_be_chosen(average: str, state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    path = saved({"model": state, average: other}, tmp_path)
    (remark,) = same(path, state).remarks
    assert "the weights under 'model' are taken" in remark and average in remark
    assert same(path, other, key=average).remarks == ()


def test_several_networks_are_refused_with_their_keys(state: State, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds a list of 3 networks under 'state_dict': choose one .* state_dict\.0, st"
    ):
        same(saved({"state_dict": [state] * 3}, tmp_path), state)
    with pytest.raises(InputError, match=r"holds the weights of 2 networks: choose one .* It has teacher, student"):
        same(saved({"teacher": state, "student": state}, tmp_path), state)
    same(saved({"state_dict": [{**state, "extra": torch.ones(9)}, state]}, tmp_path), state, key="state_dict.1")


def test_a_key_that_a_file_does_not_have_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no weights under 'ema'. It has model"):
        same(saved({"model": state}, tmp_path), state, key="ema")
    with pytest.raises(InputError, match=r"has no weights under 'ema'. It has none"):
        same(saved({"epoch": 1}, tmp_path), state, key="ema")


def test_a_checkpoint_of_ours_has_one_set_of_weights(tmp_path: Path) -> None:
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [5]}, classes=3, shape=(1, 2, 2))
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"own{suffix}"
        checkpoint.save(checkpoint.Checkpoint(build(spec)), path)
        with pytest.raises(InputError, match="one network's weights: drop the weights key 'model_ema'"):
            stored.read(path, "model_ema")


def test_tensors_of_an_optimiser_are_no_weights() -> None:
    with pytest.raises(InputError, match="holds no weights"):
        weights_in({"optimizer": {"a": 1}, "lr": 0.1}, Path("x.pt"))


# Refusals


def refusal(content: Any, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.load(saved(content, tmp_path), architecture=SPEC)
    return str(caught.value)


def test_a_refusal_says_what_the_file_has(state: State, tmp_path: Path) -> None:
    said = refusal({"features.weight": torch.ones(4, 3), "head.bias": torch.ones(7)}, tmp_path)
    assert "0.weight is missing, and" in said and "another architecture than certkd:resnet" in said
    assert "the file has 2 tensors of 19 numbers: 'features.weight' (4, 3), 'head.bias' (7,)" in said


def test_another_number_of_classes_is_named(state: State, tmp_path: Path) -> None:
    last = [name for name in state if name.endswith(".weight")][-1].removesuffix(".weight")
    wider = {**state, f"{last}.weight": torch.ones(10, 8), f"{last}.bias": torch.ones(10)}
    assert "it is of 10 classes, the data has 3" in refusal(wider, tmp_path)


def test_a_normalisation_among_the_weights_is_named(state: State, tmp_path: Path) -> None:
    with_mean = {**state, "mean": torch.ones(1), "std": torch.ones(1)}
    said = refusal(with_mean, tmp_path)
    assert "mean is unknown, and 1 more" in said and "give them as a normalisation" in said


def test_weights_of_another_kind_are_named(state: State, tmp_path: Path) -> None:
    whole = {name: value.long() if name == "0.weight" else value for name, value in state.items()}
    assert "0.weight holds torch.int64 instead of torch.float32" in refusal(whole, tmp_path)


def test_reading_happens_when_weights_are_needed(state: State, tmp_path: Path) -> None:
    """A mask is multiplied only when the weight is read."""
    calls = list[str]()

    def read(name: str, value: Tensor) -> Callable[[], Tensor]:
        return lambda: (calls.append(name), value)[1]

    held = {
        "a_orig": Stored((2,), torch.float32, read("a_orig", torch.tensor([2.0, 3.0]))),
        "a_mask": Stored((2,), torch.float32, read("a_mask", torch.tensor([0.0, 1.0]))),
    }
    made = fitted(held, {"a": torch.ones(2)})
    assert list(made) == ["a"] and calls == []
    assert made["a"].read().tolist() == [0.0, 3.0] and set(calls) == {"a_orig", "a_mask"}
