"""Relations of a pair and their thresholds."""

from typing import Any

import pytest

from verifiers.core.errors import InputError
from verifiers.core.relation import Property, Relation, settings_of


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": Property.CLOSE}, "close needs a tolerance above 0, in logits, like 0.05"),
        ({"tolerance": 0.5}, "same-class has no tolerance: drop tolerance 0.5"),
        ({"kind": Property.TRANSFER, "tolerance": 2.0}, "transfer has no tolerance: drop tolerance 2"),
        ({"kind": Property.NOT_WORSE, "delta": 0.5}, "not-worse has no delta: drop delta 0.5"),
        ({"delta": -1.0}, "tolerance 0 and delta -1 must be numbers of at least 0"),
        ({"delta": float("nan")}, "tolerance 0 and delta nan must be numbers of at least 0"),
        ({"kind": Property.CLOSE, "tolerance": float("inf")}, "tolerance inf and delta 0 must be"),
    ],
)
def test_a_threshold_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Relation(**settings)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("relation", "threshold", "changed"),
    [
        (Relation(), 0.0, Relation(delta=0.25)),
        (Relation(delta=0.5), 0.5, Relation(delta=0.25)),
        (Relation(Property.CLOSE, 0.5), 0.5, Relation(Property.CLOSE, 0.25)),
        (Relation(Property.NOT_WORSE), 0.0, Relation(Property.NOT_WORSE, 0.25)),
    ],
)
def test_the_threshold_is_the_tolerance_or_delta(relation: Relation, threshold: float, changed: Relation) -> None:
    assert relation.threshold == threshold
    assert relation.at(0.25) == changed


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("same-class", {"property": "same-class"}),
        ("same-class=1/2", {"property": "same-class", "delta": "1/2"}),
        ("close = 0.5", {"property": "close", "tolerance": "0.5"}),
        ("not-worse=", {"property": "not-worse", "tolerance": ""}),
        ("transfer", {"property": "transfer"}),
    ],
)
def test_properties_as_they_are_written(text: str, settings: dict[str, str]) -> None:
    assert settings_of(text) == settings


def test_transfer_has_no_threshold() -> None:
    with pytest.raises(InputError, match="transfer has no threshold: drop =1"):
        settings_of("transfer=1")
