"""The robustness section of a model card: Markdown with Hugging Face's model-index, and JSON."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from certkd.comparison.compare import figures, radii
from certkd.comparison.methods import check_known, common_methods, settings_of
from certkd.report.paper import markdown_text
from verifiers.core.errors import printable
from verifiers.core.quantities import parse_arithmetic
from verifiers.core.statistics import wilson
from verifiers.methods.registry import find
from verifiers.results.rows import Certificates

#: The version of the JSON; docs/card.schema.json describes it.
VERSION = 1


def card(certificates: Certificates, name: str) -> dict[str, Any]:
    """Return what a card states about one file, as plain values.

    Raises:
        InputError: rows without an answer, or no certificate method.
    """
    check_known(certificates)
    used = common_methods((certificates,), "best")
    side, radius = figures(certificates), radii(certificates)
    attributes, samples = certificates.attributes, len(radius)
    sure = wilson(int((radius >= certificates.eps).sum()), samples)
    guarantees = {find(method).guarantee.value for method in used}
    settings = settings_of(certificates)
    alphas = [settings[method]["alpha"] for method in used if "alpha" in settings[method]]
    arithmetic = str(attributes.get("arithmetic", ""))
    return {
        "version": VERSION,
        "name": name,
        "norm": certificates.norm,
        "eps": certificates.eps_text,
        "region": "the ball around each image, within [0, 1]",
        "data": {
            "name": str(attributes.get("data", "")),
            "split": str(attributes.get("split", "")),
            "samples": samples,
        },
        "certified_accuracy": {"value": sure.value, "low": sure.low, "high": sure.high, "confidence": 0.95},
        "clean_accuracy": side.clean,
        "attacked_accuracy": None if np.isnan(side.pgd) else side.pgd,
        "mean_certified_radius": side.mean_radius,
        "methods": {method: settings[method] for method in used},
        "guarantee": sorted(guarantees)[0],
        "alpha": max(alphas, default=None),
        "arithmetic": arithmetic,
        "model_sha256": str(attributes.get("model_sha256", "")),
        "data_sha256": str(attributes.get("data_sha256", "")),
        "certkd_version": str(attributes.get("certkd_version", "")),
        "verify": f"certkd verify {Path(certificates.path).name} --model NETWORK",
    }


def markdown(facts: Mapping[str, Any]) -> str:
    """Write a card: the metadata of a model index, then a section for people."""
    sure, data = facts["certified_accuracy"], facts["data"]
    kind = {"deterministic": "a proof", "probabilistic": f"a proof with confidence 1 - {facts['alpha']} per sample"}
    shares = f"{sure['value']:.1%} (95 % interval {sure['low']:.1%} to {sure['high']:.1%})"
    attacked = facts["attacked_accuracy"]
    rows = {
        "certified accuracy": shares,
        "accuracy under attack (an upper limit)": "not measured" if attacked is None else f"{attacked:.1%}",
        "clean accuracy": f"{facts['clean_accuracy']:.1%}",
        "norm, eps": f"{facts['norm']}, {facts['eps']} (pixels in [0, 1])",
        "region": facts["region"],
        "samples": f"{data['samples']} of {data['name'] or 'given arrays'}, {data['split'] or 'no named split'}",
        "method": ", ".join(facts["methods"]),
        "guarantee": kind.get(facts["guarantee"], facts["guarantee"]),
    }
    lines = [f"| {key} | {markdown_text(value)} |" for key, value in rows.items()]
    head = ["---", *_index(facts), "---", "", "## Certified robustness", "", "| | |", "| --- | --- |", *lines, ""]
    meaning = parse_arithmetic(facts["arithmetic"]).meaning if facts["arithmetic"] else ""
    after = [textwrap.fill(f"Arithmetic: {meaning}.", 80)] if meaning else []
    after.append(f"Network: sha256 {markdown_text(facts['model_sha256'])}")
    after.append(f"Verify again, with certkd {markdown_text(facts['certkd_version'])}:")
    return "\n".join([*head, "\n\n".join(after), "", f"    {printable(facts['verify'])}"])


def _index(facts: Mapping[str, Any]) -> list[str]:
    """Write the model index as YAML."""
    data = facts["data"]
    metrics = {"Certified accuracy": facts["certified_accuracy"]["value"], "Accuracy": facts["clean_accuracy"]}
    if facts["attacked_accuracy"] is not None:
        metrics["Accuracy under attack"] = facts["attacked_accuracy"]
    about = f"{facts['norm']}, eps {facts['eps']}"
    lines = ["model-index:", f"- name: {_yaml(facts['name'])}", "  results:", "  - task:"]
    lines += ["      type: image-classification", "    dataset:"]
    lines += [
        f"      name: {_yaml(data['name'] or 'arrays')}",
        f"      type: {_yaml(data['name'] or 'arrays')}",
    ]
    lines += [f"      split: {_yaml(data['split'] or 'test')}", "    metrics:"]
    for name, value in metrics.items():
        words = name if name == "Accuracy" else f"{name} ({about})"
        kind, number = name.lower().replace(" ", "_"), f"{value:.6f}".rstrip("0")
        number += "0" if number.endswith(".") else ""  # an exponent would be text to some readers of YAML
        lines += [f"    - type: {kind}", f"      value: {number}", f"      name: {_yaml(words)}"]
    return lines


def _yaml(text: str) -> str:
    """Write a text as a YAML string; control characters are shown, others stay as they are."""
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
