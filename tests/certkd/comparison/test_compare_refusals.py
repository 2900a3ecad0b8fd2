"""Files that do not belong together, or that contradict themselves, are not compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkd.comparison.compare import compare
from tests.certkd.comparison.test_compare import file, random_content, refusal
from verifiers.core.columns import indices_sha256
from verifiers.core.status import Status
from verifiers.results.rows import Certificates

Content = dict[str, dict[str, np.ndarray]]
Edit = Callable[[Content], None]


def edited(folder: Path, edit: Edit, **changes: Any) -> tuple[Certificates, Certificates]:
    """A teacher's file and a student's whose rows were edited."""
    content = random_content(2)
    edit(content)
    return file(folder / "teacher.h5", random_content(1)), file(folder / "student.h5", content, **changes)


def hash_of(content: Content) -> str:
    return indices_sha256(content["pgd"]["index"])


def rolled(content: Content) -> None:
    """All rows in another order."""
    for columns in content.values():
        for name, values in columns.items():
            columns[name] = np.roll(values, 1)


def shifted(content: Content) -> None:
    """Other samples under the same numbers of rows."""
    for columns in content.values():
        columns["index"] = columns["index"] + 1


def twice(content: Content) -> None:
    for columns in content.values():
        columns["index"][1] = columns["index"][0]


def mixed(content: Content) -> None:
    """One method's rows in another order than the others'."""
    for name, values in content["crown"].items():
        content["crown"][name] = np.roll(values, 1)


def relabelled(content: Content) -> None:
    for columns in content.values():
        columns["label"][3], columns["correct"][3] = 1, 0
        columns["predicted"][3], columns["radius"][3], columns["certified"][3] = 0, 0.0, 0
        columns["status"][3] = Status.MISCLASSIFIED


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (rolled, "differ in indices_sha256"),
        (shifted, "differ in indices_sha256"),
        (twice, "sample 100 is in more than one row"),
        (mixed, "student.h5 contradicts itself: crown: its index in row 0 is "),
        (relabelled, "their rows differ in label, so they are about other samples"),
    ],
)
@pytest.mark.thin(2)
def test_rows_that_do_not_belong_together_are_refused(tmp_path: Path, edit: Edit, words: str) -> None:
    assert words in refusal(*edited(tmp_path, edit))


def test_a_hash_that_hides_another_order_is_refused(tmp_path: Path) -> None:
    teacher, student = edited(tmp_path, rolled, indices_sha256=hash_of(random_content(1)))
    message = refusal(teacher, student)
    assert "student.h5 contradicts itself: the samples of its rows are not those of indices_sha256" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 1.5])
def test_an_absurd_radius_is_refused(tmp_path: Path, value: float) -> None:
    from verifiers.core.errors import InputError

    content = random_content(2)
    content["crown"]["radius"][int(np.flatnonzero(content["crown"]["radius"] > 0)[0])] = value
    with pytest.raises(InputError, match="radius"):
        compare(file(tmp_path / "t.h5", random_content(1)), file(tmp_path / "s.h5", content))


def test_a_file_and_itself_are_refused(tmp_path: Path) -> None:
    teacher = file(tmp_path / "t.h5", random_content(1), model_sha256="a")
    assert "t.h5 cannot be compared: they are one file" in refusal(teacher, teacher)
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "t.h5")
    from verifiers.results.reader import read

    assert "they are one file" in refusal(teacher, read(link))
    copied = tmp_path / "copy.h5"
    copied.write_bytes((tmp_path / "t.h5").read_bytes())
    assert "they are one file" in refusal(teacher, read(copied))
    other = file(tmp_path / "s.h5", random_content(1), model_sha256="b")
    assert compare(teacher, other).retention.value == 1.0, "equal rows of two networks are compared"


def test_a_student_in_the_place_of_its_teacher_is_named(tmp_path: Path) -> None:
    teacher = file(tmp_path / "t.h5", random_content(1), model_sha256="a", teacher_sha256="")
    student = file(tmp_path / "s.h5", random_content(2), model_sha256="b", teacher_sha256="a")
    assert compare(teacher, student).samples == 60
    message = refusal(student, teacher)
    assert message.endswith("give the teacher first") and f"{tmp_path / 's.h5'} is about a student" in message
    third = file(tmp_path / "u.h5", random_content(3), model_sha256="c", teacher_sha256="a")
    assert compare(student, third).samples == 60, "two students of one teacher are compared in any order"


def test_a_file_that_says_something_else_than_its_method_is_refused(tmp_path: Path) -> None:
    teacher = file(tmp_path / "t.h5", random_content(1))
    for name, value in (("guarantee", "estimate"), ("claim", "anything"), ("norm", "l2"), ("eps", 0.05)):
        student = file(tmp_path / f"{name}.h5", random_content(2))
        student["ibp"].attributes[name] = value  # type: ignore[index]
        message = refusal(teacher, student)
        assert f"{name}.h5 contradicts itself: ibp: " in message and str(value) in message, message


def test_attributes_that_leave_the_identity_are_refused(tmp_path: Path) -> None:
    teacher, student = (file(tmp_path / f"{i}.h5", random_content(i), data="digits") for i in (1, 2))
    student.attributes["data"] = "mnist"  # type: ignore[index]
    assert "the attribute data is mnist, the file's identity says digits" in refusal(teacher, student)
