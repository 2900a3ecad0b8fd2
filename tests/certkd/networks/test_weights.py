"""Weight files as people save them: keys, averages, lists, prefixes, masks, counters; and what a refusal says."""

import argparse
import datetime
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as prune
from safetensors.torch import save_file
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
    kept, remarks = fitted(state, {"a": torch.ones(2), "b": torch.ones(2)}, Path("w.pt"))
    assert kept.keys() == state.keys() and not remarks


WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_is_taken_off_wherever_it_is(wrapper: str, state: State, tmp_path: Path) -> None:
    changed = {name.replace(".", f".{wrapper}.", 1) if i % 2 else name: v for i, (name, v) in enumerate(state.items())}
    assert changed.keys() != state.keys()
    same(saved(changed, tmp_path), state)


BESIDE: dict[str, State] = {
    "the classes' weights of a loss": {"criterion.weight": torch.ones(10)},
    "the state of metrics": {"val_acc.correct": torch.tensor(3), "val_acc.total": torch.tensor(5)},
    "a head of another task": {"head.weight": torch.ones(7, 5), "head.bias": torch.ones(7)},
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("prefix", ["model.", "module.net."])
def test_what_a_module_holds_beside_the_network_is_left_out_and_said(
    prefix: str, name: str, state: State, tmp_path: Path
) -> None:
    content = {"state_dict": {**{prefix + k: v for k, v in state.items()}, **BESIDE[name]}}
    (remark,) = same(saved(content, tmp_path), state).remarks
    assert all(repr(other) in remark for other in BESIDE[name]) and "left out" in remark, remark


def test_of_two_networks_in_one_dictionary_one_is_chosen(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    both = {**{f"student.{k}": v for k, v in state.items()}, **{f"teacher.{k}": v for k, v in other.items()}}
    for content in (both, {"state_dict": both, "epoch": 3}):
        said = refusal(content, tmp_path)
        assert "holds the weights of 2 networks: choose one with a weights key. It has 'student', 'teacher'" in said
        same(saved(content, tmp_path), other, key="teacher")
    same(saved({"state_dict": both}, tmp_path), state, key="state_dict.student")


def test_a_deeper_network_is_not_cut(state: State, tmp_path: Path) -> None:
    """Names below the network's own prefix that it does not have are of another network."""
    assert "9.weight is unknown" in refusal({**state, "9.weight": torch.ones(5)}, tmp_path)
    under = {f"model.{name}": value for name, value in state.items()}
    assert "9.weight is unknown" in refusal(
        {**under, "model.9.weight": torch.ones(5), "loss.w": torch.ones(9)}, tmp_path
    )


NORMALISED = {
    "0.mean": ("1.", torch.full((1, 1, 1), 0.25)),
    "mu": ("model.", torch.full((1, 1, 1), 0.25)),
    "module.0.mean": ("module.1.", torch.full((1,), 0.25)),
    "normalize.mean": ("", torch.full((1,), 0.25)),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_a_normalisation_beside_the_network_is_not_dropped_in_silence(name: str, state: State, tmp_path: Path) -> None:
    prefix, mean = NORMALISED[name]
    content = {name: mean, **{prefix + k: v for k, v in state.items()}}
    said = refusal(content, tmp_path)
    assert "give them with --mean and --std" in said and "mean is 0.25" in said.replace("mu", "mean"), said
    given = SPEC.model_copy(update={"mean": (0.25,), "std": (0.5,)})
    known = checkpoint.load(saved(content, tmp_path), architecture=given)
    assert "left out: " in known.remarks[0] and (known.model.spec.mean, known.model.spec.std) == ((0.25,), (0.5,))


def test_weights_that_are_no_numbers_are_refused(state: State, tmp_path: Path) -> None:
    broken = {**state, "0.weight": torch.full_like(state["0.weight"], torch.nan)}
    assert "'0.weight' holds NaN: the training diverged" in refusal(broken, tmp_path)


# Other things beside weights


def test_settings_and_numbers_of_a_training_script_are_no_obstacle(state: State, tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(out=Path("/x"))),
        "best_acc1": np.float64(93.5),
        "history": defaultdict(list, loss=[np.float32(1)]),
        "curve": np.linspace(0, 1, 5),
        "when": datetime.datetime(2020, 1, 1),
        "state_dict": state,
    }
    assert same(saved(content, tmp_path), state).remarks == ()


def test_arrays_instead_of_tensors_are_named(state: State, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in state.items()}
    assert "but a numpy array under '0.weight'" in refusal(arrays, tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_formats_are_told_by_their_content(suffix: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    same(path, state)
    torch.save(state, path)
    same(path, state)


def test_programs_and_arrays_are_named_as_such(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    traced, exported, arrays = tmp_path / "t.pt", tmp_path / "e.pt2", tmp_path / "a.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(layer, torch.ones(1, 2)).save(str(traced))
    torch.export.save(torch.export.export(layer, (torch.ones(1, 2),)), exported)
    np.savez(arrays, **{name: value.detach().numpy() for name, value in layer.named_parameters()})
    for path, words in ((traced, "a TorchScript program"), (exported, "of torch.export"), (arrays, "numpy arrays")):
        with pytest.raises(InputError, match=words):
            checkpoint.load(path, architecture=SPEC)


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
    assert (
        "0.weight is missing, features.weight is unknown, and" in said
        and "another architecture than certkd:resnet" in said
    )
    assert "the file has 2 tensors of 19 numbers: 'features.weight' (4, 3), 'head.bias' (7,)" in said


def test_another_number_of_classes_is_named(state: State, tmp_path: Path) -> None:
    last = [name for name in state if name.endswith(".weight")][-1].removesuffix(".weight")
    wider = {**state, f"{last}.weight": torch.ones(10, 8), f"{last}.bias": torch.ones(10)}
    assert "it is of 10 classes, the data has 3" in refusal(wider, tmp_path)


def test_a_normalisation_among_the_weights_is_named(state: State, tmp_path: Path) -> None:
    with_mean = {**state, "mean": torch.ones(1), "std": torch.ones(1)}
    said = refusal(with_mean, tmp_path)
    assert "mean is unknown, and 1 more" in said and "give them with --mean and --std: mean is 1; std is 1" in said


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
    made, _ = fitted(held, {"a": torch.ones(2)}, Path("w.pt"))
    assert list(made) == ["a"] and calls == []
    assert made["a"].read().tolist() == [0.0, 3.0] and set(calls) == {"a_orig", "a_mask"}
