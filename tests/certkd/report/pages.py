"""Pages of two networks with six samples, whose names are hostile."""

from pathlib import Path
from typing import Any

import numpy as np

from certkd.report.page import Page
from tests.certificate_files import write_file
from tests.certkd.comparison.test_compare import EPS, attack, proofs
from verifiers.results.rows import Certificates

EVIL = "</script><img src=x onerror=alert(1)>\"'&{{}}@@title@@"
CORRECT = np.array([True, True, True, True, True, False])
RADII = {"t": [0.2, 0.2, 0.12, 0.05, 0.02, 0.0], "s": [0.2, 0.05, 0.01, 0.12, 0.02, 0.0]}
FOUND = {"t": [0, 0, 0, 0, 1, 0], "s": [0, 0, 1, 0, 1, 0]}


def certificates(folder: Path, name: str, **changes: Any) -> Certificates:
    """A file of six samples: one kept, two lost, one gained, one falsified twice, one misclassified."""
    rows = attack(CORRECT, np.array(FOUND[name], bool))
    points = np.zeros((6, 1, 4, 4), "float32")
    points[:, 0, 1, 1] = np.arange(6) / 10
    proved = {**proofs(CORRECT, np.array(RADII[name])), "margin": np.where(np.array(FOUND[name], bool), -2.0, 0.0)}
    content = {"pgd": {**rows, "counterexample": points}, "crown": proved}
    about = {
        **{"certkd_version": "1", "torch_version": "2", "auto_lirpa_version": "-", "device": "cpu", "started": "now"},
        **{"architecture": "net", "command": "certkd certify", "model_sha256": name, "arithmetic": "float32"},
    }
    return write_file(folder / f"{name}.h5", content, eps=EPS, shape=(1, 4, 4), **{**about, **changes})


def hostile(folder: Path) -> Page:
    """Return a page of two networks with images and counterexamples; every name is hostile."""
    files = {"t": certificates(folder, "t", command=EVIL), EVIL: certificates(folder, "s", architecture=EVIL)}
    images = {row: np.full((1, 4, 4), row / 10, "float32") for row in range(6)}
    return Page(f"Page {EVIL}", files, images, "Images: all.")
