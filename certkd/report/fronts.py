"""Draw each method's front of clean against certified accuracy, and tabulate it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certkd.comparison.front import Point, area, by_method, front
from certkd.report.style import COLORS, MARKERS, figure, look, save, text
from verifiers.core.table import Part, Table, counted, percent


@dataclass(frozen=True)
class About:
    """What all points of a sweep share."""

    norm: str
    eps: str
    samples: int
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        counts = counted(self.samples, "test sample"), counted(len(self.seeds), "seed")
        return f"{self.norm} ball, eps {self.eps}, {', '.join(counts)}"


def fronts(path: Path, points: Sequence[Point], about: About) -> None:
    """Plot every point with its deviation over the seeds, and a line along each method's front."""
    made, axes = figure()
    for number, (method, own) in enumerate(by_method(points).items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        means, deviations = zip(*((p.mean, p.deviation) for p in own), strict=True)
        (x, y), (dx, dy) = zip(*means, strict=True), zip(*deviations, strict=True)
        axes.errorbar(x, y, dy, dx, fmt=marker, color=color, elinewidth=0.8, label=text(method))
        best = front(own)
        axes.plot([p.mean[0] for p in best], [p.mean[1] for p in best], **(look(number) | {"linewidth": 1.2}))
    axes.set(xlabel="clean accuracy", ylabel="certified accuracy at eps")
    bars = "; bars: s.d. over seeds" if len(about.seeds) > 1 else ""
    axes.set_title(f"{about}{bars}", fontsize="small")
    axes.legend(fontsize="small")
    save(made, path)


def table(points: Sequence[Point], about: About) -> list[Part]:
    """Tabulate all points, those on a method's front and on the front of all, and the areas below the fronts."""
    overall = front(points)
    rows = []
    for own in by_method(points).values():
        best = front(own)
        for point in own:
            shares = [_share(mean, off) for mean, off in zip(point.mean, point.deviation, strict=True)]
            place = "of all" if point in overall else "of the method" if point in best else ""
            rows.append([point.method, point.settings, *shares, place])
    areas = [[method, f"{area(own):.4f}"] for method, own in by_method(points).items()]
    return [
        Table(str(about), ["method", "settings", "clean", "certified", "on the front"], rows),
        Table("Area below each method's front", ["method", "area"], areas),
    ]


def _share(mean: float, deviation: float) -> str:
    return percent(mean) if deviation == 0 else f"{percent(mean)} ± {100 * deviation:.1f}"
