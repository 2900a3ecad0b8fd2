"""Groups of files: seeds by the names of files and folders, by globs and by labels."""

from pathlib import Path

import pytest

from certkd.comparison.groups import group, seed_of
from verifiers.core.errors import InputError

NAMES = [
    (["t.h5", "kd-seed0.h5", "kd-seed1.h5"], {"t": 1, "kd": 2}),
    (["t.h5", "kd_s1.h5", "kd_s2.h5", "kdiga_s1.h5"], {"t": 1, "kd": 2, "kdiga": 1}),
    (["t.h5", "kd/0.h5", "kd/1.h5", "kdiga/0.h5"], {"t": 1, "kd": 2, "kdiga": 1}),
    (["runs/seed0/kd.h5", "runs/seed1/kd.h5"], {"kd": 2}),
    (["kd/seed-3/best.h5", "kd/seed-4/best.h5", "rslad/seed-3/best.h5"], {"kd/best": 2, "rslad/best": 1}),
    (["a/best.h5", "b/best.h5"], {"a/best": 1, "b/best": 1}),
    (["width-4.h5", "width-8.h5"], {"width-4": 1, "width-8": 1}),  # two networks, not two seeds
    (["resnet-s.h5", "resnets2.h5"], {"resnet-s": 1, "resnets2": 1}),
    (["seed0.h5"], {"seed0": 1}),
    (["kd-seed0-linf-2_255.h5", "kd-seed1-linf-2_255.h5"], {"kd-linf-2_255": 2}),
]


@pytest.mark.parametrize(("files", "counts"), NAMES, ids=lambda value: str(value)[:40])
def test_paths_that_differ_in_the_seed_alone_are_one_network(files: list[str], counts: dict[str, int]) -> None:
    found = group(files)
    assert {label: len(each) for label, each in found.items()} == counts
    assert sorted(file for each in found.values() for file in each) == sorted(files)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of two networks under names that say nothing of seeds."""
    for name in ("kd/red.h5", "kd/blue.h5", "x/a.h5", "odd=name.h5", "what?.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_glob_is_one_network(folder: Path) -> None:
    assert group(["x/a.h5", "kd/*.h5"]) == {"a": ("x/a.h5",), "kd": ("kd/blue.h5", "kd/red.h5")}
    assert group(["x/a.h5", "mine=kd/*.h5"])["mine"] == ("kd/blue.h5", "kd/red.h5")
    assert group(["x/*.h5", "kd/red.h5"]) == {"a": ("x/a.h5",), "red": ("kd/red.h5",)}


def test_a_label_may_gather_any_files(folder: Path) -> None:
    assert group(["t=x/a.h5", "kd=kd/red.h5", "kd=kd/blue.h5"]) == {"t": ("x/a.h5",), "kd": ("kd/red.h5", "kd/blue.h5")}
    assert group(["x/a.h5", "kd/*.h5"], ["ours", "theirs"]) == {
        "ours": ("x/a.h5",),
        "theirs": ("kd/blue.h5", "kd/red.h5"),
    }


def test_files_with_strange_names_are_themselves(folder: Path) -> None:
    assert group(["odd=name.h5", "what?.h5"]) == {"odd=name": ("odd=name.h5",), "what?": ("what?.h5",)}


REFUSED = [
    (["none*.h5"], (), "no file matches 'none*.h5'"),
    (["kd/red.h5", "kd/red.h5"], (), "kd/red.h5 is given twice"),
    (["kd/red.h5", "kd/*.h5"], (), "kd/red.h5 is given twice"),
    (["x/a.h5", "kd/red.h5"], ("one",), "1 label for 2 networks (x/a.h5; kd/red.h5): give --label once for each"),
    (["x/a.h5", "kd/red.h5"], ("one", "one"), "two networks have the label 'one'"),
]


@pytest.mark.parametrize(("files", "labels", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_grouped_is_refused(
    folder: Path, files: list[str], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        group(files, labels)
    assert message in str(caught.value)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_first_file_is_the_first_group(order: tuple[int, ...]) -> None:
    files = ["t.h5", "kd-seed0.h5", "kd-seed1.h5", "ours.h5"]
    found = group([files[i] for i in order])
    assert next(iter(found.values()))[0] == files[order[0]]
    assert set(found) == {"t", "kd", "ours"} and len(found["kd"]) == 2


def test_no_files_are_no_groups() -> None:
    assert group([]) == {}


@pytest.mark.parametrize(
    ("path", "seed"),
    [
        ("kd-seed0.h5", "0"),
        ("runs/seed12/kd.h5", "12"),
        ("kd_s3/a.h5", "3"),
        ("kd/7.h5", "7"),
        ("kd.h5", ""),
        ("as1.h5", ""),
    ],
)
def test_the_seed_of_a_path(path: str, seed: str) -> None:
    assert seed_of(path) == seed
