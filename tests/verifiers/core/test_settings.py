"""Frozen settings and the numbers that they hold: what is taken, and the one line that refuses the rest."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from verifiers.core.errors import InputError, did_you_mean, one_line
from verifiers.core.settings import Count, CountOrZero, EpsilonText, Number, Positive, Seed, Share, Strict


class Example(Strict):
    """One setting of each kind."""

    number: Number = 0.5
    positive: Positive = 1.0
    share: Share = 0.5
    count: Count = 3
    some: CountOrZero = 0
    seed: Seed = 0
    eps: EpsilonText = "8/255"


class Needed(Strict):
    """Settings without a default, with an example and without."""

    steps: Annotated[Count, Field(examples=["50"])]
    name: str = "x"
    place: str


TAKEN: list[tuple[str, Any, Any]] = [
    ("number", "8/255", 8 / 255),
    ("number", "1e-3", 1e-3),
    ("number", " 1 / 4 ", 0.25),
    ("number", 0, 0.0),
    ("positive", "2.5", 2.5),
    ("share", 1, 1.0),
    ("share", "1/2", 0.5),
    ("count", "4", 4),
    ("count", 4.0, 4),
    ("count", "1e3", 1000),
    ("count", "6/2", 3),
    ("some", "0", 0),
    ("seed", 2**63 - 1, 2**63 - 1),
    ("eps", "2/255", "2/255"),
    ("eps", " 2 / 255 ", "2/255"),
    ("eps", 0.03, "0.03"),
]


@pytest.mark.parametrize(("name", "given", "value"), TAKEN)
def test_a_number_is_taken_as_people_write_it(name: str, given: Any, value: Any) -> None:
    found = getattr(Example.parse({name: given}), name)
    assert found == value and type(found) is type(value)


REFUSED: list[tuple[str, Any, str]] = [
    ("number", -1, "number must be at least 0, got -1"),
    ("number", "many", "number: 'many' is not a number; write it like 8/255, 0.03 or 1e-3"),
    ("number", "1/0", "number: '1/0' divides by zero; write it like 8/255 or 0.03"),
    ("number", True, "number: True is not a number; write it like 8/255, 0.03 or 1e-3"),
    ("number", float("nan"), "number: nan is not a number; write it like 8/255, 0.03 or 1e-3"),
    ("number", "1e399", "'1e399' is too large a number"),
    ("positive", 0, "positive must be greater than 0, got 0"),
    ("share", "1.5", "share must be at most 1, got '1.5'"),
    ("count", 0, "count must be at least 1, got 0"),
    ("count", "4.5", "count: '4.5' is not a whole number; write it like 20"),
    ("count", "many", "count: 'many' is not a whole number; write it like 20"),
    ("some", "1/0", "some: '1/0' is not a whole number; write it like 20"),
    ("some", float("inf"), "some: inf is not a whole number; write it like 20"),
    ("some", -1, "some must be at least 0, got -1"),
    ("seed", True, "seed: a seed is a whole number, got True"),
    ("seed", 2**63, "got 9223372036854775808"),
    ("eps", "0", "eps must be positive and finite, got '0'"),
    ("steps", 3, "unknown setting 'steps'."),
    ("cuont", 3, "unknown setting 'cuont'. Did you mean 'count'?"),
]


@pytest.mark.parametrize(("name", "given", "words"), REFUSED)
def test_a_wrong_setting_is_refused_in_one_line(name: str, given: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Example.parse({name: given}, source="a.yaml")
    message = str(caught.value)
    assert message.startswith("a.yaml: ") and words in message and "\n" not in message, message


def test_without_a_source_the_message_begins_with_the_setting() -> None:
    with pytest.raises(InputError, match=r"^share must be at most 1, got 2$"):
        Example.parse({"share": 2})


def test_a_missing_setting_is_named_with_an_example() -> None:
    with pytest.raises(InputError, match=r"^the setting steps is missing: give one, like steps=50$"):
        Needed.parse({"place": "here"})
    with pytest.raises(InputError, match=r"^the setting place is missing$"):
        Needed.parse({"steps": 3})


@pytest.mark.parametrize(("name", "given", "words"), REFUSED)
def test_a_constructor_and_plain_values_are_refused_with_the_same_words(name: str, given: Any, words: str) -> None:
    with pytest.raises(InputError) as plain:
        Example.parse({name: given})
    with pytest.raises(InputError) as built:
        Example(**{name: given})
    assert str(built.value) == str(plain.value) and words in str(built.value)


def test_settings_cannot_change_and_compare_by_value() -> None:
    settings = Example.parse({"count": "5"})
    with pytest.raises(InputError, match=r"^count cannot change: build a new Example$"):
        settings.count = 6  # type: ignore[misc]
    assert settings == Example(count=5) != Example()
    assert Example.model_validate_json(settings.model_dump_json()) == settings, "settings do not survive their file"


def test_settings_are_given_by_name() -> None:
    with pytest.raises(TypeError, match=r"^Needed takes settings by name: steps, name, place$"):
        Needed(3)


def test_a_setting_without_effect_is_refused() -> None:
    settings = Example(count=7)
    settings.refuse_idle({"count": True, "some": False})
    with pytest.raises(ValueError, match="count 7 has no effect with the other settings: drop it"):
        settings.refuse_idle({"some": False, "count": False})


def test_the_nearest_name_is_proposed_or_all_are_listed() -> None:
    assert did_you_mean("crwn", ["pgd", "crown"]) == " Did you mean 'crown'?"
    assert did_you_mean("xyz", ["pgd", "crown"]) == " Known: pgd, crown."


def test_messages_of_libraries_become_one_short_line() -> None:
    assert one_line(ValueError("first\n  second\tthird")) == "first second third"
    assert one_line(ValueError("x" * 500)) == "x" * 200
    assert one_line(ValueError("x" * 500), limit=None) == "x" * 500
