"""The table of all training objectives: settings, literal version, and what is particular to each."""

from collections.abc import Callable
from dataclasses import dataclass, field

from certkd.objectives import (
    AdaAd,
    Adversarial,
    AdvFunMatch,
    Akd,
    Ard,
    Consistency,
    Crt,
    Gaussian,
    Iad,
    Ibp,
    Igd,
    Kd,
    Kdiga,
    KdigaCertified,
    Mtard,
    MtlIbp,
    Objective,
    Rslad,
    Sabr,
    SmoothAdv,
    Standard,
    Trades,
)
from certkd.objectives.base import Batch
from tests.certkd.objectives.objective_oracles import (
    STEP,
    literal_kdiga,
    oracle_adaad,
    oracle_adversarial,
    oracle_advfunmatch,
    oracle_akd,
    oracle_ard,
    oracle_ard_shao,
    oracle_consistency,
    oracle_crt,
    oracle_gaussian,
    oracle_iad,
    oracle_iad_paper,
    oracle_ibp,
    oracle_igd,
    oracle_kd,
    oracle_kdiga_certified,
    oracle_mtard,
    oracle_mtl_ibp,
    oracle_rslad,
    oracle_sabr,
    oracle_smoothadv,
    oracle_standard,
    oracle_trades,
)


@dataclass(frozen=True)
class Row:
    """An objective with settings other than the defaults, its literal version, and what is particular to it.

    Attributes:
        weights: of each term.
        forwards: student forward passes in train mode in one step; the teachers' all.
        zero: terms that vanish when all networks are the same.
        blind: classes of no probability change nothing (not so where all logits are aligned, bounded or subtracted).
    """

    objective: Objective
    oracle: Callable[[Batch], dict[str, float]]
    weights: dict[str, float]
    forwards: int = 1
    teacher_forwards: int = 0
    natural_forwards: int = 0
    zero: frozenset[str] = field(default=frozenset())
    blind: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """For test ids."""
        return f"{self.objective.kind} {self.note}".strip()  # type: ignore[attr-defined]


def kdiga_row(note: str, forwards: int = 1, teacher_forwards: int = 1, blind: bool = True, **settings: object) -> Row:
    """A setting of KDIGA, whose literal version follows it."""
    chosen = Kdiga(lambda_ce=0.3, lambda_kl=0.8, temperature=2, lambda_iga=1.7, **settings)  # type: ignore[arg-type]
    weights = {"ce": 0.3, "kl": 0.8, "iga": 1.7}
    zero = frozenset({"kl", "iga"})
    return Row(chosen, literal_kdiga(chosen), weights, forwards, teacher_forwards, zero=zero, blind=blind, note=note)


STEPS = int(STEP["steps"])
ROWS = (
    Row(Standard(), oracle_standard, {"ce": 1.0}),
    Row(Adversarial(**STEP), oracle_adversarial, {"ce_adversarial": 1.0}),
    Row(Trades(beta=2, **STEP), oracle_trades, {"ce": 1.0, "kl_self": 2.0}, 2),
    Row(Ibp(eps=0.05, kappa=0.3), oracle_ibp, {"ce": 0.3, "ce_certified": 0.7}),
    Row(MtlIbp(alpha=0.2, **STEP), oracle_mtl_ibp, {"ce_certified": 0.2, "ce_adversarial": 0.8}),
    Row(Sabr(share=0.3, **STEP), oracle_sabr, {"ce_certified": 1.0}, 0),
    Row(
        Kd(lambda_ce=0.3, lambda_kl=0.8, temperature=3),
        oracle_kd,
        {"ce": 0.3, "kl": 0.8},
        teacher_forwards=1,
        zero=frozenset({"kl"}),
    ),
    kdiga_row("ce", target="ce"),
    kdiga_row("ce_tempered", target="ce_tempered", target_temperature=3),
    kdiga_row("margin", target="margin"),
    kdiga_row("projection", target="projection", blind=False),
    kdiga_row("jacobian", target="jacobian", blind=False),
    kdiga_row("finite_difference", 2, 2, blind=False, target="finite_difference", point="random", eps=STEP["eps"]),
    kdiga_row("finite_difference attacked", 3, 2, blind=False, target="finite_difference", point="adversarial", **STEP),
    kdiga_row("norm 1", target="margin", norm=1),
    kdiga_row("squared", target="ce_tempered", squared=True),
    kdiga_row("norm 1 squared", target="ce", norm=1, squared=True),
    kdiga_row("rs", target="ce", point="random", eps=STEP["eps"]),
    kdiga_row("ard_a", 2, 1, target="ce", point="adversarial", **STEP),
    kdiga_row("ard_c", 2, 2, target="ce", kl_point="adversarial", **STEP),
    kdiga_row("teacher correct", target="ce", mask="teacher_correct"),
    kdiga_row("ard_c, teacher correct", 2, 2, target="margin", kl_point="adversarial", mask="teacher_correct", **STEP),
    Row(
        KdigaCertified(target="ce", lambda_iga=1, eps=0.05, bound="ibp", lambda_deficit=0.6),
        oracle_kdiga_certified,
        {"ce": 0.5, "kl": 0.5, "iga": 1.0, "deficit": 0.6},
        teacher_forwards=1,
        zero=frozenset({"kl", "iga"}),
        blind=False,
    ),
    Row(
        Ard(alpha=0.7, temperature=5, **STEP),
        oracle_ard,
        {"kl_adversarial": 0.7, "ce": 1 - 0.7},
        2,
        1,
    ),
    Row(
        Kdiga(lambda_iga=0, kl_point="adversarial", **STEP),
        oracle_ard_shao,
        {"ce": 0.5, "kl": 0.5},
        2,
        1,
        zero=frozenset({"kl"}),
    ),
    Row(
        Rslad(lambda_adversarial=0.6, lambda_clean=0.3, lambda_igdm=0.7, **STEP),
        oracle_rslad,
        {"kl_adversarial": 0.6, "kl_clean": 0.3, "igdm": 0.7},
        3,
        4,
        zero=frozenset({"kl_clean", "igdm"}),
        blind=False,
    ),
    Row(Iad(beta=0.4, **STEP), oracle_iad, {"kl_adversarial": 1.0, "kl_self": 1.0}, 2, 2),
    Row(
        Iad(beta=0.4, weigh_teacher=True, **STEP),
        oracle_iad_paper,
        {"kl_adversarial": 1.0, "kl_self": 1.0},
        2,
        2,
        note="as printed",
    ),
    Row(
        AdaAd(lambda_adversarial=0.6, trust=0.2, lambda_igdm=0.7, **STEP),
        oracle_adaad,
        {"kl_adversarial": 0.6, "kl_clean": 0.4, "kl_self": 1.0, "igdm": 0.7},
        3,
        STEPS + 3,
        zero=frozenset({"kl_adversarial", "kl_clean", "igdm"}),
        blind=False,
    ),
    Row(
        AdvFunMatch(mix=False, **STEP),
        oracle_advfunmatch,
        {"kl_adversarial": 1.0},
        1,
        STEPS + 1,
        zero=frozenset({"kl_adversarial"}),
    ),
    Row(
        Akd(alpha=0.3, temperature=2, **STEP),
        oracle_akd,
        {"ce_adversarial": 0.7, "kl_adversarial": 0.3},
        1,
        1,
        zero=frozenset({"kl_adversarial"}),
    ),
    Row(
        Mtard(**STEP),
        oracle_mtard,
        {"kl_adversarial": 0.5, "kl_clean": 0.5},
        2,
        1,
        1,
        zero=frozenset({"kl_adversarial", "kl_clean"}),
    ),
    Row(
        Igd(lambda_igd=0.6, **STEP),
        oracle_igd,
        {"ce_adversarial": 1.0, "igd": 0.6},
        2,
        0,
        1,
        zero=frozenset({"igd"}),
    ),
    Row(Gaussian(sigma=0.4), oracle_gaussian, {"ce_noisy": 1.0}),
    Row(
        Consistency(sigma=0.4, copies=3, lam=1.3, eta=0.7),
        oracle_consistency,
        {"ce_noisy": 1.0, "consistency": 1.3, "entropy": 0.7},
    ),
    # The ball holds the whole box: PGD ends in corners, which small changes of the weights do not move.
    Row(SmoothAdv(sigma=0.4, copies=3, eps=9, steps=5), oracle_smoothadv, {"ce_adversarial": 1.0}),
    Row(
        Crt(sigma=0.4, alpha=0.7),
        oracle_crt,
        {"transfer": 0.7, "ce_noisy": 1 - 0.7},
        teacher_forwards=1,
        zero=frozenset({"transfer"}),
    ),
)
