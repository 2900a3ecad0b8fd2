"""The card: its numbers, its JSON against the schema of the documentation, and its metadata as YAML."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from ruamel.yaml import YAML

from certkd.comparison.compare import plain
from certkd.report.card import card, markdown
from tests.certkd.comparison.test_compare import attack, file, proofs
from tests.cli import refused, succeeds
from tests.paths import ROOT
from verifiers.core.errors import printable
from verifiers.core.statistics import wilson
from verifiers.results.rows import Certificates

MARKDOWN = r"""---
model-index:
- name: "net"
  results:
  - task:
      type: image-classification
    dataset:
      name: "digits"
      type: "digits"
      split: "test"
    metrics:
    - type: certified_accuracy
      value: 0.5
      name: "Certified accuracy (linf, eps 0.1)"
    - type: accuracy
      value: 0.8
      name: "Accuracy"
    - type: accuracy_under_attack
      value: 0.6
      name: "Accuracy under attack (linf, eps 0.1)"
---

## Certified robustness

| | |
| --- | --- |
| certified accuracy | 50.0% (95 % interval 23.7% to 76.3%) |
| accuracy under attack (an upper limit) | 60.0% |
| clean accuracy | 80.0% |
| norm, eps | linf, 0.1 (pixels in \[0, 1\]) |
| region | the ball around each image, within \[0, 1\] |
| samples | 10 of digits, test |
| method | crown |
| guarantee | a proof |

Arithmetic: proofs hold for the network in float32, with sums in any order, with
or without fused multiply-add.

Network: sha256 abc

Verify again, with certkd 1.0:

    certkd verify net.h5 --model NETWORK
"""

DOCUMENT = """
{
    "version": 1,
    "name": "net",
    "norm": "linf",
    "eps": "0.1",
    "region": "the ball around each image, within [0, 1]",
    "data": {
        "name": "digits",
        "split": "test",
        "samples": 10
    },
    "certified_accuracy": {
        "value": 0.5,
        "low": 0.23659309051256405,
        "high": 0.763406909487436,
        "confidence": 0.95
    },
    "clean_accuracy": 0.8,
    "attacked_accuracy": 0.6,
    "mean_certified_radius": 0.11499999999999999,
    "methods": {
        "crown": {
            "cross_check": 2,
            "engine": "auto",
            "time_limit": 3600.0,
            "tolerance": 0.005
        }
    },
    "guarantee": "deterministic",
    "alpha": null,
    "arithmetic": "float32",
    "model_sha256": "abc",
    "data_sha256": "data",
    "certkd_version": "1.0",
    "verify": "certkd verify net.h5 --model NETWORK"
}
"""

EVIL = "x`|<b>\n---\n\x1b[2J\"'"
CORRECT = np.array([True] * 8 + [False] * 2)
RADIUS = np.array([0.2] * 5 + [0.05] * 5)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    found = np.array([False] * 6 + [True] * 4)
    content = {
        "pgd": attack(CORRECT, found),
        "crown": {**proofs(CORRECT, RADIUS), "margin": np.where(found, -2.0, 0.0)},
    }
    about = {"arithmetic": "float32", "data": "digits", "split": "test", "certkd_version": EVIL, "model_sha256": "abc"}
    return file(tmp_path_factory.mktemp("card") / "net.h5", content, **about)


def test_its_numbers_are_those_of_the_file(certificates: Certificates) -> None:
    facts = card(certificates, "net")
    sure = wilson(5, 10)
    assert facts["certified_accuracy"] == {"value": 0.5, "low": sure.low, "high": sure.high, "confidence": 0.95}
    assert (facts["clean_accuracy"], facts["attacked_accuracy"]) == (0.8, 0.6)
    assert facts["mean_certified_radius"] == pytest.approx((5 * 0.2 + 3 * 0.05) / 10)
    assert facts["data"] == {"name": "digits", "split": "test", "samples": 10}
    assert facts["guarantee"] == "deterministic" and facts["alpha"] is None and list(facts["methods"]) == ["crown"]
    assert facts["verify"] == "certkd verify net.h5 --model NETWORK"


def check(value: Any, schema: dict[str, Any], where: str = "card") -> None:
    """Check a value against the parts of JSON Schema that the card's uses."""
    kinds = {"object": dict, "string": str, "number": (int, float), "integer": int, "null": type(None)}
    allowed = schema.get("type", list(kinds))
    allowed = [allowed] if isinstance(allowed, str) else allowed
    assert any(isinstance(value, kinds[kind]) for kind in allowed), f"{where} is {value!r}, not {allowed}"
    assert "const" not in schema or value == schema["const"], where
    assert "enum" not in schema or value in schema["enum"], f"{where} is {value!r}"
    if isinstance(value, int | float):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), f"{where} is {value}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), where
        assert schema.get("additionalProperties", True) is not False or set(value) <= set(known), where
        for name, one in value.items():
            check(one, known.get(name, {}), f"{where}.{name}")


def test_its_json_follows_the_schema(certificates: Certificates) -> None:
    schema = json.loads((ROOT / "docs" / "card.schema.json").read_text(encoding="utf-8"))
    facts = json.loads(json.dumps(plain(card(certificates, "net"))))
    check(facts, schema)
    for change in ({"norm": "linff"}, {"clean_accuracy": 1.5}, {"extra": 1}, {"eps": 2}):
        with pytest.raises(AssertionError):
            check({**facts, **change}, schema)


def test_its_metadata_is_yaml_and_names_stay_text(certificates: Certificates) -> None:
    text = markdown(card(certificates, EVIL))
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    (model,) = YAML(typ="safe").load(head)["model-index"]
    assert model["name"] == printable(EVIL)
    (result,) = model["results"]
    assert result["task"] == {"type": "image-classification"} and result["dataset"]["name"] == "digits"
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "Certified accuracy (linf, eps 0.1)": 0.5,
        "Accuracy": 0.8,
        "Accuracy under attack (linf, eps 0.1)": 0.6,
    }
    assert (
        "<b>" not in body and "\x1b" not in body and "certified accuracy | 50.0% (95 % interval 23.7% to 76.3%)" in body
    )
    for words in (
        "linf, 0.1",
        "10 of digits, test",
        "| a proof |",
        "proofs hold for the network in float32",
        "sha256 abc",
    ):
        assert words in body, words


def test_the_command_prints_and_writes_it(certificates: Certificates, tmp_path: Path) -> None:
    printed = succeeds("card", certificates.path)
    assert printed.startswith('---\nmodel-index:\n- name: "net"\n')
    succeeds("card", certificates.path, "--out", tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == printed
    succeeds("card", certificates.path, "--out", tmp_path / "card.json", "--name", "mine")
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["name"] == "mine"
    assert json.loads(succeeds("card", certificates.path, "--json"))["certified_accuracy"]["value"] == 0.5
    assert "is there already: add --overwrite" in refused("card", certificates.path, "--out", tmp_path / "card.md")
    succeeds("card", certificates.path, "--out", tmp_path / "card.md", "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none.h5", "no certificate file at none.h5"),
        ("none.h5 --out a.txt", "--out a.txt: give a name that ends in .md or .json"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str) -> None:
    assert message in refused("card", *words.split())


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The same file with an ordinary version."""
    found = np.array([False] * 6 + [True] * 4)
    content = {
        "pgd": attack(CORRECT, found),
        "crown": {**proofs(CORRECT, RADIUS), "margin": np.where(found, -2.0, 0.0)},
    }
    about = {"arithmetic": "float32", "data": "digits", "split": "test", "certkd_version": "1.0", "model_sha256": "abc"}
    return file(tmp_path_factory.mktemp("plain") / "net.h5", content, **about)


def test_markdown_whole(plainly: Certificates) -> None:
    assert markdown(card(plainly, "net")) == MARKDOWN.rstrip("\n")


def test_json_whole(plainly: Certificates) -> None:
    assert plain(card(plainly, "net")) == json.loads(DOCUMENT)


@pytest.mark.parametrize("name", ["net", "a network: 網路 😀 'x' #1", EVIL])
def test_hugging_face_reads_it(certificates: Certificates, name: str) -> None:
    read = ModelCard(markdown(card(certificates, name)))
    assert read.data.model_name == printable(name)
    found = [(one.task_type, one.dataset_type, one.dataset_name, one.dataset_split) for one in read.data.eval_results]
    assert found == [("image-classification", "digits", "digits", "test")] * 3
    metrics = {one.metric_type: (one.metric_value, one.metric_name) for one in read.data.eval_results}
    assert metrics == {
        "certified_accuracy": (0.5, "Certified accuracy (linf, eps 0.1)"),
        "accuracy": (0.8, "Accuracy"),
        "accuracy_under_attack": (0.6, "Accuracy under attack (linf, eps 0.1)"),
    }
    index = read.data.to_dict()["model-index"]
    again, results = model_index_to_eval_results(index)
    assert again == printable(name) and len(results) == 3
    assert ModelCardData(model_name=again, eval_results=results).to_dict()["model-index"] == index
    assert read.text.strip().startswith("## Certified robustness")


def test_a_small_share_stays_a_number(certificates: Certificates) -> None:
    facts = {**card(certificates, "net"), "clean_accuracy": 1e-5, "attacked_accuracy": 0.0}
    values = [one.metric_value for one in ModelCard(markdown(facts)).data.eval_results]
    assert values == [0.5, 1e-5, 0.0]
