"""Settings: frozen records that refuse unknown keys, and the numbers that they hold."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
Count = Annotated[int, BeforeValidator(_integer), Field(ge=1)]
#: Keys all randomness; a whole number that every generator takes.
Seed = Annotated[int, BeforeValidator(_seed), Field(ge=0, lt=2**63)]
#: A positive radius, kept as it was written ("8/255").
EpsilonText = Annotated[str, BeforeValidator(_epsilon)]


class Strict(BaseModel):
    """Settings that cannot change and refuse unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def refuse_idle(self, used: Mapping[str, bool]) -> None:
        """Refuse settings other than the default that nothing looks at, given which are looked at.

        Raises:
            ValueError: naming the first.
        """
        for name, looked_at in used.items():
            if not looked_at and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)} has no effect with the other settings: drop it")
