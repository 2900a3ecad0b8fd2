"""Axes of a sweep: how they are written, which students they reach, and what is refused."""

import pytest

from certkd.config.experiment import ExperimentConfig
from certkd.config.sweep import Axis, expanded
from verifiers.core.errors import InputError

CONFIG = ExperimentConfig.parse(
    {
        "out": "runs/x",
        "teacher": {"objective": {"kind": "adversarial", "eps": 0.1}},
        "students": {
            "objectives": {
                "mtl": {"kind": "mtl_ibp", "eps": 0.1, "steps": 3},
                "small": {"kind": "sabr", "eps": 0.1},
                "plain": {"kind": "standard"},
            }
        },
        "certify": {"eps": 0.1},
    }
)


def test_all_students_that_have_the_setting_are_varied_and_the_others_are_there_once() -> None:
    variants, objectives = expanded(
        CONFIG, [Axis.parse("objective.alpha=0.1,1/2"), Axis.parse("objective.ramp=0, 0.5")]
    )
    names = [f"mtl+alpha-{a}+ramp-{r}" for a in ("0.1", "1_2") for r in ("0", "0.5")]
    assert list(variants) == [*names, "small+ramp-0", "small+ramp-0.5", "plain"]
    assert [objectives[name].alpha for name in names] == [0.1, 0.1, 0.5, 0.5]  # type: ignore[attr-defined]
    assert objectives[names[0]].steps == 3 and objectives[names[0]].eps == 0.1  # type: ignore[attr-defined]
    assert dict(variants["small+ramp-0.5"].settings) == {"ramp": "0.5"} and variants["plain"].method == "plain"


def test_one_students_own_axis_wins() -> None:
    variants, _ = expanded(CONFIG, [Axis.parse("objective.ramp=0.1,0.2"), Axis.parse("mtl.ramp=0.9")])
    assert list(variants) == ["mtl+ramp-0.9", "small+ramp-0.1", "small+ramp-0.2", "plain"]


@pytest.mark.parametrize("text", ["alpha=1", "objective.alpha", "objective.=1", ".alpha=1", "objective.alpha=1,,2", ""])
def test_an_axis_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="a sweep is over a setting's values, like"):
        Axis.parse(text)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("objective.alhpa=1", "no objective has setting 'alhpa'. Did you mean 'alpha'?"),
        ("mlt.alpha=1", "no student 'mlt'. Did you mean 'mtl'?"),
        ("plain.alpha=1", "the objective of plain has no setting 'alpha'"),
        ("objective.kind=kd", "no objective has setting 'kind'"),
        ("objective.alpha=2", "mtl: alpha must be at most 1, got 2"),
        ("objective.alpha=much", "mtl: alpha: 'much' is not a number"),
        ("mtl.alpha=1/2,1_2", "two students would be named 'mtl+alpha-1_2'"),
    ],
)
def test_what_does_not_fit_the_experiment_is_refused_in_one_line(axis: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        expanded(CONFIG, [Axis.parse(axis)])
    assert message in str(caught.value)


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="is given twice: drop one"):
        Axis.parse("objective.alpha=0.1,0.3,0.1")
