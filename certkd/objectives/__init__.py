"""All training objectives, listed once; each file has one class, or a few of one kind."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, PlainSerializer, WrapValidator

from certkd.objectives.ad_cert import AdCert
from certkd.objectives.adaad import AdaAd, AdvFunMatch
from certkd.objectives.adversarial import Adversarial
from certkd.objectives.akd import Akd
from certkd.objectives.ard import Ard
from certkd.objectives.base import Objective
from certkd.objectives.cat import Cat
from certkd.objectives.cc_dist import CcDist
from certkd.objectives.certified import CcIbp, Ibp, MtlIbp, Sabr
from certkd.objectives.consistency import Consistency
from certkd.objectives.crg import Crg
from certkd.objectives.crt import Crt
from certkd.objectives.gaussian import Gaussian
from certkd.objectives.iad import Iad
from certkd.objectives.igd import Igd
from certkd.objectives.kd import Kd
from certkd.objectives.kdiga import Kdiga
from certkd.objectives.kdiga_certified import KdigaCertified
from certkd.objectives.mld import Mld
from certkd.objectives.mtard import Mtard
from certkd.objectives.pag import Pag
from certkd.objectives.rfd import Rfd
from certkd.objectives.rslad import Rslad
from certkd.objectives.saad import Saad
from certkd.objectives.smoothadv import SmoothAdv
from certkd.objectives.squeeze import Squeeze
from certkd.objectives.standard import Standard
from certkd.objectives.taps import Taps
from certkd.objectives.trades import Trades
from certkd.objectives.uad import Uad

OBJECTIVES: tuple[type[Objective], ...] = (
    Standard,
    Adversarial,
    Trades,
    Squeeze,
    Uad,
    Ibp,
    MtlIbp,
    CcIbp,
    Sabr,
    Taps,
    Kd,
    Kdiga,
    KdigaCertified,
    AdCert,
    CcDist,
    Ard,
    Rslad,
    Iad,
    AdaAd,
    AdvFunMatch,
    Akd,
    Saad,
    Mld,
    Cat,
    Pag,
    Crg,
    Rfd,
    Mtard,
    Igd,
    Gaussian,
    Consistency,
    SmoothAdv,
    Crt,
)


def _keep_objects(value: Any, validate: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, Objective) else validate(value)


if TYPE_CHECKING:
    AnyObjective = Objective
else:
    #: Any objective in a configuration, selected by ``kind``; in Python also any object with its own ``terms``.
    AnyObjective = Annotated[
        Union[OBJECTIVES],  # noqa: UP007
        Field(discriminator="kind"),
        WrapValidator(_keep_objects),
        PlainSerializer(lambda objective: objective.model_dump(mode="json"), when_used="json"),
    ]

__all__ = [
    "OBJECTIVES",
    "AdCert",
    "AdaAd",
    "AdvFunMatch",
    "Adversarial",
    "Akd",
    "AnyObjective",
    "Ard",
    "Cat",
    "CcDist",
    "CcIbp",
    "Consistency",
    "Crg",
    "Crt",
    "Gaussian",
    "Iad",
    "Ibp",
    "Igd",
    "Kd",
    "Kdiga",
    "KdigaCertified",
    "Mld",
    "Mtard",
    "MtlIbp",
    "Objective",
    "Pag",
    "Rfd",
    "Rslad",
    "Saad",
    "Sabr",
    "SmoothAdv",
    "Squeeze",
    "Standard",
    "Taps",
    "Trades",
    "Uad",
]
