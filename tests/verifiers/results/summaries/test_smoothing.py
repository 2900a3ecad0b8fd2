"""Votes of two networks on the same copies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.certifying import certify
from verifiers.results.summaries.smoothing import of_counts, shared_votes


def test_shares_and_variances_are_those_of_the_labels_themselves() -> None:
    generator = np.random.default_rng(0)
    teacher = generator.integers(0, 3, 5000)
    student = np.where(generator.random(5000) < 0.8, teacher, generator.integers(0, 3, 5000))
    same = np.where(teacher == student, teacher, -1)
    own, other, both = (np.array([[(labels == k).sum() for k in range(3)]]) for labels in (student, teacher, same))
    found = of_counts(own, other, both, np.array([1]), np.array([5000]))
    difference = (student == 1).astype(float) - (teacher == 1)
    assert found.agreement[0] == pytest.approx((teacher == student).mean())
    assert found.lost[0] == pytest.approx(((teacher == 1) & (student != 1)).mean())
    assert found.gained[0] == pytest.approx(((teacher != 1) & (student == 1)).mean())
    assert found.variance[0] == pytest.approx(difference.var() / 5000)
    assert found.unpaired_variance[0] == pytest.approx(((student == 1).var() + (teacher == 1).var()) / 5000)
    assert found.variance[0] < 0.4 * found.unpaired_variance[0]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_file_tells_them_where_a_teacher_saw_the_copies(tmp_path: Path, with_teacher: bool) -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)) for _ in range(2))
    found = certify(
        student,
        torch.rand(4, 1, 3, 3),
        torch.zeros(4, dtype=torch.int64),
        eps=0.1,
        norm="l2",
        methods=["smoothing"],
        options={"sigma": 1.0, "n": 300},
        out=tmp_path / "s.h5",
        teacher=teacher if with_teacher else None,
    )
    shared = shared_votes(found["smoothing"], found.path)
    assert (shared is not None) == with_teacher
    assert shared is None or ((shared.agreement > 0) & (shared.agreement < 1)).all()
