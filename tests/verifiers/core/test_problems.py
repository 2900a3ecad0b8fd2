"""The one line about wrong settings: where they stand, what they are, and what is allowed."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from verifiers.core.errors import InputError
from verifiers.core.settings import Count, EpsilonText, Positive, Strict


class Square(Strict):
    """One of two shapes."""

    kind: Literal["square"] = "square"
    side: Positive = 1.0


class Circle(Strict):
    """The other one."""

    kind: Literal["circle"] = "circle"
    radius: Positive


class Room(Strict):
    """Settings within settings."""

    colour: Literal["red", "blue"] = "red"
    doors: Count = 1
    open: bool = False
    steps: tuple[Positive, ...] = ()


class House(Strict):
    """Settings of every sort of place."""

    name: str = "house"
    seed: int = 0
    size: float = 1.0
    eps: EpsilonText = "8/255"
    room: Room = Room()
    key: Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")] = ""
    shape: Annotated[Square | Circle, Field(discriminator="kind")] = Square()
    rooms: dict[str, Room] = {}
    shapes: dict[str, Annotated[Square | Circle, Field(discriminator="kind")]] = {}


LINES: list[tuple[dict[str, Any], str]] = [
    ({"nmae": "x"}, "unknown setting 'nmae'. Did you mean 'name'?"),
    ({"room": {"windows": 1}}, "unknown setting 'room.windows'. Known: colour, doors, open, steps."),
    ({"rooms": {"red": {"door": 1}}}, "unknown setting 'rooms.red.door'. Did you mean 'doors'?"),
    ({"shape": {"kind": "circle", "radios": 1}}, "unknown setting 'shape.radios'. Did you mean 'radius'? (and 1 more)"),
    ({"shape": {"kind": "square", "sid": 1}}, "unknown setting 'shape.sid'. Did you mean 'side'?"),
    ({"shapes": {"circle": {"kind": "square", "sid": 1}}}, "unknown setting 'shapes.circle.sid'. Did you mean 'side'?"),
    ({"shape": {"side": 1}}, "the setting shape.kind is missing"),
    ({"shape": {"kind": "sqare"}}, "shape: unknown kind 'sqare'. Did you mean 'square'?"),
    ({"shape": "circle"}, "shape must be settings by name, like {kind: circle}, got 'circle'"),
    ({"shape": 3}, "shape must be settings by name, like {kind: square}, got 3"),
    ({"room": 3}, "room must be settings by name, got 3"),
    ({"rooms": [1]}, "rooms must be settings by name, got [1]"),
    ({"rooms": {3: {}}}, "rooms.3 must be text, got 3"),
    ({"name": 3}, "name must be text, got 3"),
    ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ({"seed": "x"}, "seed must be a whole number, got 'x'"),
    ({"size": "wide"}, "size must be a finite number, got 'wide'"),
    ({"room": {"colour": "green"}}, "room.colour must be 'red' or 'blue', got 'green'"),
    ({"room": {"open": "ajar"}}, "room.open must be true or false, got 'ajar'"),
    ({"room": {"doors": 0}}, "room.doors must be at least 1, got 0"),
    ({"room": {"doors": "two"}}, "room.doors: 'two' is not a whole number; write it like 20"),
    ({"room": {"steps": 0.5}}, "room.steps must be a list, got 0.5"),
    ({"room": {"steps": [1, 0]}}, "room.steps.1 must be greater than 0, got 0"),
    ({"eps": "0"}, "eps must be positive and finite, got '0': write it like 8/255 or 0.03"),
    ({"key": "x"}, "key must match ^[0-9a-f]{0,64}$, got 'x'"),
    ({"doors": 1, "seed": "x"}, "unknown setting 'doors'. Did you mean 'room.doors'? (and 1 more)"),
]


@pytest.mark.parametrize(("given", "line"), LINES, ids=[line for _, line in LINES])
def test_a_problem_is_one_line_that_names_the_setting(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        House.parse(given)
    assert str(caught.value) == line
    with pytest.raises(InputError) as caught:
        House(**given)
    assert str(caught.value) == line, "Python says something else than a file"
    with pytest.raises(InputError) as caught:
        House.parse(given, source="a.yaml")
    assert str(caught.value) == f"a.yaml: {line}"


def test_a_long_value_and_one_of_several_lines_stay_short_and_on_one_line() -> None:
    class Lines:
        def __repr__(self) -> str:
            return "first\n  second"

    for value, start in ((Lines(), "first"), (list(range(1000)), "[0, 1, 2"), ("x" * 1000, "'xxx")):
        with pytest.raises(InputError, match=r"^name must be text, got |^eps: ") as caught:
            House.parse({"eps" if isinstance(value, str) else "name": value})
        message = str(caught.value)
        assert start in message and "\n" not in message and len(message) < 200, message


def test_settings_within_settings_are_built_and_kept() -> None:
    room = Room(doors=2)
    assert House(room=room).room == House(room={"doors": 2}).room == room  # type: ignore[arg-type]
