"""Every training objective there is: one class a file, listed once."""

from typing import Annotated, Union

from pydantic import Field

from certkd.objectives.adversarial import Adversarial
from certkd.objectives.base import Objective
from certkd.objectives.consistency import Consistency
from certkd.objectives.crt import Crt
from certkd.objectives.gaussian import Gaussian
from certkd.objectives.kd import Kd
from certkd.objectives.kdiga import Kdiga
from certkd.objectives.smoothadv import SmoothAdv
from certkd.objectives.standard import Standard

OBJECTIVES: tuple[type[Objective], ...] = (Standard, Adversarial, Kd, Kdiga, Gaussian, Consistency, SmoothAdv, Crt)

#: Any of them in a configuration, told apart by ``kind``.
AnyObjective = Annotated[Union[OBJECTIVES], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007

__all__ = [
    "OBJECTIVES",
    "Adversarial",
    "AnyObjective",
    "Consistency",
    "Crt",
    "Gaussian",
    "Kd",
    "Kdiga",
    "Objective",
    "SmoothAdv",
    "Standard",
]
