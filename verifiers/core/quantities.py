"""Exact numbers as people write them. Nothing heavy is imported, so a wrong number is refused at once."""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import sqrt

from verifiers.core.errors import InputError, did_you_mean, quoted


@dataclass(frozen=True)
class Epsilon:
    """A radius in pixel units ([0, 1] images), kept exactly as it was written.

    ``text`` round-trips to the certificate file ("2/255"); ``value`` is the nearest float64.
    """

    text: str
    value: float

    @classmethod
    def parse(cls, given: "str | float | Epsilon") -> "Epsilon":
        """Read ``"8/255"``, ``"0.03"``, ``"1e-3"`` or a number.

        Raises:
            InputError: not a finite positive number.
        """
        if isinstance(given, Epsilon):
            return given
        try:
            value = float(parse_number(given, name="eps"))
        except OverflowError:
            value = float("inf")
        if not 0 < value < float("inf"):
            raise InputError(f"eps must be positive and finite, got {quoted(given)}: write it like 8/255 or 0.03")
        return cls("".join(str(given).split()), value)

    def __str__(self) -> str:
        return self.text


def parse_number(given: object, *, name: str = "") -> Fraction:
    """Read an exact number from ``8/255``, ``0.03``, ``1e-3``, an int or a finite float.

    Raises:
        InputError: for anything else, with the input repeated.
    """
    text, prefix = "".join(str(given).split()), f"{name}: " if name else ""
    try:
        if isinstance(given, bool) or abs(int(text.lower().partition("e")[2] or 0)) > 400:
            raise ValueError  # exact arithmetic on 1e999999999 would not end
        text.encode("ascii")  # digits of other alphabets look like others
        return Fraction(text)
    except ZeroDivisionError:
        raise InputError(f"{prefix}{quoted(given)} divides by zero; write it like 8/255 or 0.03") from None
    except (ValueError, OverflowError):
        raise InputError(f"{prefix}{quoted(given)} is not a number; write it like 8/255, 0.03 or 1e-3") from None


class Norm(StrEnum):
    """The norm of the ball around an image. The region is the ball intersected with the image box [0, 1]^d."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


class Arithmetic(StrEnum):
    """The arithmetic of the network that a proof is about."""

    FLOAT32 = "float32"
    REAL = "real"
    INT8 = "int8"

    @property
    def deployed(self) -> bool:
        """True if proofs hold for the network as machines compute it, with its rounding."""
        return self is not Arithmetic.REAL

    @property
    def label(self) -> str:
        """The name, and where the arithmetic comes from."""
        return "int8 (as in the file)" if self is Arithmetic.INT8 else self.value

    @property
    def meaning(self) -> str:
        """The network that proofs hold for, in words."""
        if self is Arithmetic.REAL:
            return "proofs hold for the network over the real numbers, not for its rounding in float32"
        if self is Arithmetic.INT8:
            return (
                "proofs hold for the network in the codes of its file, with exact integer sums and scales in float32, "
                "multiplied in any order"
            )
        return "proofs hold for the network in float32, with sums in any order, with or without fused multiply-add"


#: The names of arithmetics whose proofs hold for the network as machines compute it.
DEPLOYED = tuple(each.value for each in Arithmetic if each.deployed)


def parse_arithmetic(given: str | Arithmetic) -> Arithmetic:
    """Return the arithmetic of that name.

    Raises:
        InputError: the name is unknown; the message suggests the nearest known one.
    """
    try:
        return Arithmetic(given)
    except ValueError:
        known = [arithmetic.value for arithmetic in Arithmetic]
        raise InputError(f"unknown arithmetic {given!r}.{did_you_mean(str(given), known)}") from None


def parse_norm(given: str | Norm) -> Norm:
    """Return the norm of that name.

    Raises:
        InputError: an unknown name, with the nearest known one.
    """
    try:
        return Norm(given)
    except ValueError:
        hint = did_you_mean(str(given), [norm.value for norm in Norm])
        raise InputError(f"unknown norm {quoted(given)}.{hint}") from None


def whole_box(norm: Norm, pixels: int) -> float:
    """Return the radius at which a ball around any image contains the whole image box."""
    return {Norm.LINF: 1.0, Norm.L2: sqrt(pixels), Norm.L1: float(pixels)}[norm]


def beyond_images(eps: Epsilon, norm: Norm, entries: int | None = None) -> str | None:
    """Say that a ball holds every image, or that its radius is probably in bytes; None if it is a usual one.

    Args:
        eps: the radius, in pixel units.
        norm: of the ball.
        entries: pixels times channels of an image; None if unknown, and then linf alone is judged.
    """
    hint = "write it like 8/255 or 0.03"
    if eps.value < 255 and eps.text.replace(".", "", 1).isdigit():
        hint = f"did you mean {eps.value:g}/255?"
    known = norm is Norm.LINF or entries is not None
    if known and eps.value > whole_box(norm, entries or 1):
        return f"eps {eps} covers the whole image box [0, 1]: {hint}"
    if norm is Norm.L2 and entries is not None and eps.value >= 16 and eps.value == int(eps.value):
        return f"eps {eps} is large for pixels in [0, 1]: {hint}"
    return None
