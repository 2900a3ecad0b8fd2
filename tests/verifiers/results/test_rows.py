"""Rows in memory: arrays by name and by attribute, a short repr, and frames of pandas."""

import builtins
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.certificate_files import write_file
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.results import Certificates, read

COUNT = 5


def rows(status: Status, radius: float) -> dict[str, np.ndarray]:
    return {
        "index": 10 + np.arange(COUNT),
        "radius": np.full(COUNT, radius),
        "certified": np.full(COUNT, radius >= 0.1, "uint8"),
        "status": np.full(COUNT, status.value, "uint8"),
    }


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    content = {"pgd": rows(Status.FALSIFIED, 0.0), "alpha-crown": rows(Status.CERTIFIED, 0.2)}
    write_file(tmp_path / "s.h5", content, eps="1/10", norm="l2")
    return read(tmp_path / "s.h5")


def test_arrays_by_name_and_by_attribute(certificates: Certificates) -> None:
    assert certificates.alpha_crown is certificates["alpha-crown"]
    assert certificates.alpha_crown.radius is certificates["alpha-crown"]["radius"]
    assert certificates.alpha_crown.radius.tolist() == [0.2] * COUNT
    assert "alpha_crown" in dir(certificates) and "radius" in dir(certificates.pgd)
    assert "radius" in certificates.pgd and "length" not in certificates.pgd
    with pytest.raises(AttributeError, match="no method 'crown'"):
        _ = certificates.crown
    with pytest.raises(AttributeError, match="no column 'radii'"):
        _ = certificates.pgd.radii


def test_iterating_gives_the_methods_in_their_order(certificates: Certificates) -> None:
    assert [method.name for method in certificates] == ["pgd", "alpha-crown"]
    assert "pgd" in certificates and "crown" not in certificates


def test_repr_is_one_short_line(certificates: Certificates) -> None:
    assert repr(certificates) == (f"<{certificates.path}: l2, eps 1/10, {COUNT} samples, methods pgd, alpha-crown>")
    assert repr(certificates.alpha_crown) == f"<alpha-crown: l2, eps 1/10, {COUNT} samples, {COUNT} certified at eps>"
    assert (certificates.alpha_crown.at_eps, certificates.pgd.at_eps) == (COUNT, 0)
    assert repr(Certificates(certificates.attributes, certificates.methods)).startswith("<in memory: ")


def test_copies_and_pickles_are_equal(certificates: Certificates) -> None:
    for again in (copy.deepcopy(certificates), pickle.loads(pickle.dumps(certificates))):
        assert repr(again) == repr(certificates)
        assert np.array_equal(again.pgd.radius, certificates.pgd.radius)


def test_pandas_has_a_row_per_method_and_sample_and_statuses_by_name(certificates: Certificates) -> None:
    frame = certificates.to_pandas()
    assert len(frame) == 2 * COUNT and frame.columns[0] == "method"
    assert frame.groupby("method")["status"].unique().map(list).to_dict() == {
        "alpha-crown": ["CERTIFIED"],
        "pgd": ["FALSIFIED"],
    }
    one = certificates.alpha_crown.to_pandas()
    assert one["index"].tolist() == list(range(10, 10 + COUNT)) and set(one["status"]) == {"CERTIFIED"}
    assert one["radius"].tolist() == certificates.alpha_crown.radius.tolist()
    assert "counterexample" not in frame.columns, "images do not belong into a frame"


def test_without_pandas_one_line_says_so(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    for source in (certificates, certificates.pgd):
        with pytest.raises(InputError, match=r"^to_pandas needs pandas.*pip install pandas$"):
            source.to_pandas()
