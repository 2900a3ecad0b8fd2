"""Settings: frozen records that refuse unknown names, and the types of their values."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from verifiers.core.errors import InputError, quoted
from verifiers.core.problems import first_problem
from verifiers.core.quantities import Epsilon, Norm, beyond_images, parse_number


def _number(value: Any) -> float:
    try:
        return float(parse_number(value))
    except OverflowError:
        raise ValueError(f"{quoted(value)} is too large a number") from None


def _integer(value: Any) -> int:
    with suppress(InputError):
        exact = parse_number(value)
        if exact.denominator == 1:
            return int(exact)
    raise ValueError(f"{quoted(value)} is not a whole number; write it like 20")


def _epsilon(value: Any) -> str:
    return Epsilon.parse(value).text


def _seed(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a seed is a whole number")
    return value


#: A number as configurations write it: 0.1, 8/255, 1e-3. Negative ones are refused.
Number = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
#: A radius that something is trained or attacked at, in pixel units.
Radius = Annotated[Positive, Field(examples=["8/255"])]
#: A share in [0, 1].
Share = Annotated[Number, Field(le=1)]
Count = Annotated[int, BeforeValidator(_integer), Field(ge=1, le=10**15)]
#: A whole number of 0 or more.
CountOrZero = Annotated[int, BeforeValidator(_integer), Field(ge=0, le=10**15)]
#: A seed of all randomness; a whole number that every generator takes.
Seed = Annotated[int, BeforeValidator(_seed), Field(ge=0, lt=2**63)]
#: Bounds that training differentiates.
BoundMethod = Literal["ibp", "crown-ibp"]
#: A positive radius, kept as it was written ("8/255").
EpsilonText = Annotated[str, BeforeValidator(_epsilon), Field(examples=["8/255"])]


#: The class itself; not ``Self``, which beartype takes only where it decorates the whole class.
Own = TypeVar("Own", bound="Strict")


@contextmanager
def _refused_in_one_line(kind: type[BaseModel], given: Mapping[str, Any], source: str = "") -> Iterator[None]:
    """Raise an InputError of one line where pydantic refuses some values."""
    try:
        yield
    except ValidationError as error:
        problem = first_problem(error, kind, given)
    except OverflowError:
        problem = "a number is too large"
    else:
        return
    raise InputError(f"{source}: {problem}" if source else problem) from None


class Strict(BaseModel):
    """Settings that cannot change and refuse unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    if not TYPE_CHECKING:  # type checkers derive the arguments from the fields

        def __init__(self, /, *unnamed: Any, **values: Any) -> None:
            kind = type(self)
            if unnamed:
                raise TypeError(f"{kind.__name__} takes settings by name: {', '.join(kind.model_fields)}")
            with _refused_in_one_line(kind, values):
                super().__init__(**values)

        __init__.__pydantic_base_init__ = True  # settings inside settings are built without it

        def __setattr__(self, name: str, value: Any) -> None:
            raise InputError(f"{name} cannot change: build a new {type(self).__name__}")

    @model_validator(mode="after")
    def _ball_inside_the_images(self: Own) -> Own:
        """Refuse an eps in bytes in the norm linf, which is meant where no norm is named and nothing is smoothed."""
        default = None if hasattr(self, "sigma") else Norm.LINF
        eps, norm = getattr(self, "eps", None), getattr(self, "attack_norm", getattr(self, "norm", default))
        if eps is not None and norm is Norm.LINF:
            beyond = beyond_images(Epsilon.parse(eps), norm)
            if beyond is not None:
                raise InputError(beyond)
        return self

    @classmethod
    def parse(cls: type[Own], values: Mapping[str, Any], *, source: str = "") -> Own:
        """Build settings from plain values; a refusal begins with their source.

        Raises:
            InputError: a setting is missing, unknown or out of range.
        """
        with _refused_in_one_line(cls, values, source):
            return cls.model_validate(dict(values))

    def refuse_idle(self, used: Mapping[str, bool]) -> None:
        """Refuse a setting that is changed although the others make it ineffective.

        Args:
            used: for each setting, whether it has an effect.

        Raises:
            ValueError: it names the first such setting.
        """
        for name, has_effect in used.items():
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)} has no effect with the other settings: drop it")
