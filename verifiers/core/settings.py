"""Settings: frozen records that refuse unknown keys, and the numbers that they hold."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Epsilon, parse_number


def _number(value: Any) -> float:
    try:
        return float(parse_number(value))
    except OverflowError:
        raise ValueError(f"{value!r} is too large a number") from None


def _integer(value: Any) -> int:
    exact = parse_number(value)
    if exact.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number")
    return int(exact)


def _epsilon(value: Any) -> str:
    return Epsilon.parse(value).text


def _seed(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a seed is a whole number")
    return value


#: A number as configurations write it: 0.1, 8/255, 1e-3. Negative ones are refused.
Number = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
#: A share in [0, 1].
Share = Annotated[Number, Field(le=1)]
Count = Annotated[int, BeforeValidator(_integer), Field(ge=1, le=10**15)]
#: A number of things, none included.
Some = Annotated[int, BeforeValidator(_integer), Field(ge=0, le=10**15)]
#: Keys all randomness; a whole number that every generator takes.
Seed = Annotated[int, BeforeValidator(_seed), Field(ge=0, lt=2**63)]
#: Bounds that training differentiates.
BoundMethod = Literal["ibp", "crown-ibp"]
#: A positive radius, kept as it was written ("8/255").
EpsilonText = Annotated[str, BeforeValidator(_epsilon)]


#: The class itself; not ``Self``, which beartype takes only where it decorates the whole class.
Own = TypeVar("Own", bound="Strict")

#: How pydantic puts what a person should read.
_PLAIN = {
    "Input should be greater than or equal to ": "must be at least ",
    "Input should be less than or equal to ": "must be at most ",
    "Input should be a valid integer": "must be a whole number",
    "Input should be ": "must be ",
}


class Strict(BaseModel):
    """Settings that cannot change and refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def parse(cls: type[Own], values: Mapping[str, Any], *, source: str = "") -> Own:
        """Settings from plain values; messages begin with their source.

        Raises:
            InputError: in one line: a setting that is missing, unknown or out of its range.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problem = _first_problem(error, cls)
        except OverflowError:
            problem = "a number is too large"
        raise InputError(f"{source}: {problem}" if source else problem)

    def refuse_idle(self, used: Mapping[str, bool]) -> None:
        """Refuse settings other than the default that nothing looks at, given which are looked at.

        Raises:
            ValueError: naming the first.
        """
        for name, looked_at in used.items():
            if not looked_at and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)} has no effect with the other settings: drop it")


def _first_problem(error: ValidationError, settings: type[Strict]) -> str:
    problem, fields = error.errors()[0], settings.model_fields
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name!r}.{did_you_mean(name, list(fields))}"
    if problem["type"] == "missing":
        example = (fields[name].examples or ["..."])[0]
        return f"the setting {name} is missing: give one, like {name}={example}"
    message, own = problem["msg"].removeprefix("Value error, "), problem["type"] == "value_error"
    start = next((start for start in _PLAIN if message.startswith(start)), "")
    message = _PLAIN.get(start, "") + (message.removeprefix(start) if "integer" not in start else "")
    quiet = own and (isinstance(problem["input"], Mapping) or repr(problem["input"]) in message or name == "methods")
    given = "" if quiet else f", got {problem['input']!r}"
    if message.startswith("must "):
        return f"{name} {message}{given}"
    named = not name or name == "methods" or message.startswith((f"{name} ", f"{name}: "))
    return f"{message}{given}" if named else f"{name}: {message}{given}"
