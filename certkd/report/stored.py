"""The points that certificate files store, as pictures of the page: counterexamples, and where two networks differ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from certkd.comparison.methods import falsifying, relation
from certkd.report import pictures
from verifiers.core.errors import printable
from verifiers.core.status import Status
from verifiers.methods.registry import find
from verifiers.results.reader import read_images
from verifiers.results.rows import Certificates, MethodRows

Images = Mapping[int, np.ndarray]


@dataclass
class Album:
    """Pictures that take at most some bytes together.

    Attributes:
        images: by row, of channels, height and width; empty where they are not known.
        left: bytes that are left.
    """

    images: Images
    left: int = pictures.BYTES // 2

    def shown(self, row: int, point: np.ndarray, *, image: bool = False) -> dict[str, str]:
        """Draw a point, with its image if wanted and the difference where the image is known; empty where full."""
        known = self.images.get(row)
        made = {"image": pictures.picture(known)} if image and known is not None else {}
        made["point"] = pictures.picture(point)
        if known is not None and known.shape == point.shape:
            made["difference"] = pictures.difference(known, point)
        self.left -= sum(map(len, made.values()))
        return made if self.left >= 0 else {}


def falsified(certificates: Certificates) -> np.ndarray:
    """Mark the samples that have a counterexample."""
    none = np.zeros(len(next(iter(certificates))), bool)
    return np.any([none, *(rows["status"] == Status.FALSIFIED for rows in falsifying(certificates))], axis=0)


def counterexamples(
    networks: Mapping[str, Certificates], chosen: Sequence[int], album: Album
) -> dict[int, list[dict[str, str]]]:
    """Draw a counterexample of each network to each of the chosen rows, as many as fit."""
    found: dict[int, list[dict[str, str]]] = {}
    for name, certificates in networks.items():
        done: set[int] = set()
        for rows in falsifying(certificates):
            for row, point in _points(certificates, rows, [row for row in chosen if row not in done]):
                made = album.shown(row, point)
                if made:
                    done.add(row)
                    one = {"name": printable(name), "distance": f"{rows['distance'][row]:.4g}", **made}
                    found.setdefault(row, []).append(one)
    return found


def disagreements(certificates: Certificates, most: int, album: Album) -> list[tuple[list[str], dict[str, str]]]:
    """List the first samples at which a stored point separates two networks: its facts, and pictures where they fit.

    The facts are the sample's index, the student's class and the teacher's at the point, and the violation in logits.
    """
    rows = relation(certificates)
    if rows is None:
        return []
    chosen = np.flatnonzero(rows["status"] == Status.FALSIFIED)[:most].tolist()
    points = dict(_points(certificates, rows, chosen))
    listed = []
    for row in chosen:
        numbers = [str(rows[name][row]) for name in ("index", "student_class", "teacher_class")]
        made = album.shown(row, points[row], image=True) if row in points else {}
        listed.append(([*numbers, f"{rows['violation'][row]:.3g}"], made))
    return listed


def _points(certificates: Certificates, rows: MethodRows, chosen: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Read the points of those chosen rows that have one, where they are images."""
    broken = (rows["status"] == Status.FALSIFIED) & np.isfinite(rows["distance"])
    have = [row for row in chosen if broken[row]]
    stored = any(column.name == "counterexample" for column in find(rows.name).columns)
    if have and stored and Path(certificates.path).is_file():
        for row, point in zip(have, read_images(certificates.path, rows.name, "counterexample", have), strict=True):
            if pictures.is_drawn(point.shape) and np.isfinite(point).all():
                yield row, point
