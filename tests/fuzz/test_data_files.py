"""Damaged archives, images, lists, tables and logs."""

import gzip
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certkd.config.settings import DataConfig
from certkd.data.arrays import read_array
from certkd.data.images import opened
from certkd.data.selection import chosen
from certkd.data.sources import load
from certkd.exchange import instance_list
from tests.fuzz.mutate import TEXT, Mutation, mutants
from tests.fuzz.trial import Sandbox
from verifiers.smoothing.logs import Vote, import_log


def archives() -> list[bytes]:
    made = []
    for write, kind in ((np.savez, "f4"), (np.savez_compressed, "u1")):
        content, y = io.BytesIO(), np.arange(12) % 3
        x = (np.arange(12 * 9).reshape(12, 1, 3, 3) / (1 if kind == "u1" else 108)).astype(kind)
        write(content, x_train=x, y_train=y, x_test=x, y_test=y)
        made.append(content.getvalue())
    return made


def single_array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones((5, 2, 2), "f4"))
    return content.getvalue()


def header_text(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another header in an archive that is not compressed."""
    place = content.find(b"{'descr'")
    if place < 0:
        return content
    words = (b"'<f8'", b"'|O'", b"(12, 1, 3, 3)", b"False", b"(10000000000,)", b"-1", b"((((((", b"'<U99'")
    start = place + chance.randrange(60)
    word = chance.choice(words)
    return content[:start] + word + content[start + len(word) :]


def images() -> list[bytes]:
    made, picture = [], np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype("u1")
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, kind)
        made.append(content.getvalue())
    return made


LISTS = [b"3,17,40-99\n# a comment\n1\n", b"0-5\n7,9\n"]
INSTANCES = [b"image_index,label,eps\n0,7,2/255\n1,2,0.03\n", b"net,index,label,eps\na,0,7,1/255\nb,1,2,1/255\n"]
LOG = (
    b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    b"0\t1\t1\t0.473\t1\t0:00:01.5\n1\t0\t-1\t0.0\t0\t0:00:01.5\n2\t2\t2\t0.0215\t1\t0:00:02\n3\t2\t1\t0.321\t0\t0:00:02\n"
)
VOTE = Vote(sigma=0.25, n=100_000, alpha=0.001)


def use_archive(path: Path) -> None:
    data = load(DataConfig(name=str(path)))
    assert data.classes < 100_001 and len(data.splits["test"])


def use_image(path: Path) -> None:
    with opened(path) as image:
        assert np.asarray(image.convert("RGB")).ndim == 3


def use_log(path: Path) -> None:
    with np.errstate(all="ignore"):
        import_log(path, VOTE)


Kind = tuple[Sequence[bytes], Sequence[Mutation], Callable[[Path], object], str]
KINDS: dict[str, Kind] = {
    "archive": (archives(), (header_text,), use_archive, "a.npz"),
    "array": ([single_array()], (header_text,), lambda path: read_array(path).sum(), "a.npy"),
    "image": (images(), (), use_image, "a.png"),
    "list": (LISTS, TEXT, lambda path: chosen(None, path, None).rows(100, "the split"), "a.txt"),
    "instances": (INSTANCES, TEXT, lambda path: instance_list.read(path, "a"), "a.csv"),
    "log": ([LOG], TEXT, use_log, "a.tsv"),
    "packed-log": ([gzip.compress(LOG, mtime=0)], (), use_log, "a.tsv.gz"),
}


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), *(pytest.param(seed, 300, marks=pytest.mark.slow) for seed in (1,))]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(sandbox: Sandbox, kind: str, seed: int, count: int) -> None:
    valid, mutations, use, name = KINDS[kind]
    path, refused = Path(name), 0
    for made, content in mutants(valid, count, seed, mutations):
        path.write_bytes(content)
        refused += sandbox.call(f"{kind}, {made}", lambda: use(path)) is not None
    assert refused > count / 2, "most damaged files are refused"


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_valid_before(sandbox: Sandbox, kind: str) -> None:
    valid, _, use, name = KINDS[kind]
    for content in valid:
        Path(name).write_bytes(content)
        assert sandbox.call(kind, lambda: use(Path(name))) is None
