"""Plot certificates and trainings. Every figure names n, norm, eps and method, and its band where it has one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certkd.report.style import COLORS, FILLS, FORMATS, GREY, MARKERS, figure, look, save, text
from verifiers.core.statistics import wilson

__all__ = [
    "FORMATS",
    "Caption",
    "brackets",
    "distributions",
    "paired_radii",
    "radius_curves",
    "stages",
    "training_curves",
]


@dataclass(frozen=True)
class Caption:
    """Describe the samples and the certificates of a figure.

    Attributes:
        norm, eps: of the ball.
        samples: their number.
        methods: whose radii are drawn.
    """

    norm: str
    eps: float
    samples: int
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(self.methods)}; {self.norm}; n = {self.samples}"

    @property
    def radius(self) -> str:
        """The label of an axis of radii, with its unit."""
        return f"radius r ({self.norm}, pixels in [0, 1])"


def radius_curves(path: Path, radii: Mapping[str, Sequence[np.ndarray]], about: Caption) -> None:
    """Plot certified accuracy at every radius, one step curve per network.

    The band of one seed is the pointwise 95 % Wilson interval; of several, the mean plus and minus their standard
    deviation.

    Args:
        path: of the plot; its suffix names the format.
        radii: certified radius per sample, an array for each seed, by network; misclassified samples have 0.
        about: the caption; its eps is marked by a vertical line.
    """
    made, axes = figure()
    top = max(float(values.max()) for seeds in radii.values() for values in seeds)
    bands = set()
    for number, (name, seeds) in enumerate(radii.items()):
        x, share, low, high = _curve(seeds)
        axes.fill_between(x, low, high, step="post", color=COLORS[number % len(COLORS)], alpha=0.15, linewidth=0)
        axes.step(x, share, where="post", label=text(name), **look(number))
        bands.add(f"mean ± s.d. over {len(seeds)} seeds" if len(seeds) > 1 else "pointwise 95 % Wilson")
    axes.axvline(about.eps, color=GREY, linewidth=1, linestyle=":", label=f"eps = {about.eps:.4g}")
    axes.set(xlabel=about.radius, ylabel="certified accuracy at r", xlim=(0, top * 1.02 or 1), ylim=(0, 1.02))
    axes.set_title(f"{about}; band: {', '.join(sorted(bands))}", fontsize="small")
    axes.legend()
    save(made, path)


def _curve(seeds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return radii, the share certified at more than each, and its band; the last share is 0."""
    positive = np.unique(np.concatenate([[0.0], *(values[values > 0] for values in seeds)]))
    counts = np.stack([len(values) - np.searchsorted(np.sort(values), positive, side="right") for values in seeds])
    if len(seeds) == 1:
        limits = [wilson(int(count), len(seeds[0])) for count in counts[0]]
        bounds = np.array([(one.low, one.high) for one in limits]).T
        return positive, counts[0] / len(seeds[0]), bounds[0], bounds[1]
    shares = counts / len(seeds[0])
    mean, deviation = shares.mean(0), shares.std(0, ddof=1)
    return positive, mean, np.clip(mean - deviation, 0, 1), np.clip(mean + deviation, 0, 1)


def paired_radii(path: Path, teacher: np.ndarray, student: np.ndarray, about: Caption, names: tuple[str, str]) -> None:
    """Plot each sample's radius under the student against that under the teacher; above the diagonal is a gain."""
    made, axes = figure()
    eps, top = about.eps, max(float(teacher.max()), float(student.max())) * 1.05 or 1.0
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, label="equal radii")
    axes.axvline(eps, color=GREY, linewidth=1, linestyle=":")
    axes.axhline(eps, color=GREY, linewidth=1, linestyle=":")
    had, has = teacher >= eps, student >= eps
    groups = (
        (had & has, "kept at eps"),
        (had & ~has, "lost at eps"),
        (~had & has, "gained at eps"),
        (~had & ~has, "neither"),
    )
    for number, (chosen, label) in enumerate(groups):
        color, words = (*COLORS[:3], GREY)[number], f"{label} ({int(chosen.sum())})"
        axes.scatter(
            teacher[chosen], student[chosen], s=14, color=color, marker=MARKERS[number], linewidths=1, label=words
        )
    axes.set(xlabel=f"{text(names[0])}: {about.radius}", ylabel=f"{text(names[1])}: radius r")
    axes.set(xlim=(-0.01 * top, top), ylim=(-0.01 * top, top), aspect="equal")
    axes.set_title(f"{about}; eps = {eps:.4g}", fontsize="small")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize="small")  # inside it would hide gains
    save(made, path)


def distributions(path: Path, critical: Mapping[str, tuple[np.ndarray, np.ndarray]], about: Caption) -> None:
    """Plot robustness distributions: the share of samples whose critical eps is at most r.

    The critical eps of a sample is the largest radius at which it is robust. Proofs give a lower limit and
    counterexamples an upper one; the true distribution is between the two curves.

    Args:
        path: of the plot.
        critical: by network, lower limits (0 where misclassified), and upper ones (inf where no attack succeeded).
        about: the caption.

    Source: Bosman, Berger, Hoos and van Rijn, Robustness Distributions in Neural Network Verification, JAIR 2025.
    """
    made, axes = figure()
    finite = [values[np.isfinite(values)] for limits in critical.values() for values in limits]
    top = max((float(values.max()) for values in finite if len(values)), default=1.0) * 1.02 or 1.0
    x = np.unique(np.concatenate([[0.0, top], *finite]))
    for number, (name, limits) in enumerate(critical.items()):
        most, least = (np.searchsorted(np.sort(values), x, side="right") / len(values) for values in limits)
        axes.fill_between(x, least, most, step="post", color=COLORS[number % len(COLORS)], alpha=0.15, linewidth=0)
        axes.step(x, most, where="post", label=f"{text(name)}, by proof", **look(number))
        axes.step(x, least, where="post", label=f"{text(name)}, by attack", **{**look(number), "linewidth": 0.9})
    axes.axvline(about.eps, color=GREY, linewidth=1, linestyle=":", label=f"eps = {about.eps:.4g}")
    axes.set(xlabel=about.radius, ylabel="share with critical eps at most r", xlim=(0, top), ylim=(0, 1.02))
    axes.set_title(f"{about}; band: from attack to proof", fontsize="small")
    axes.legend(fontsize="small")
    save(made, path)


def brackets(path: Path, shares: Mapping[str, tuple[float, float, float]], about: Caption) -> None:
    """Plot each network's robust accuracy at eps as a bar from what is proved to what no attack broke.

    Args:
        path: of the plot.
        shares: certified, attacked (nan without an attack) and clean accuracy by network.
        about: the caption.
    """
    from matplotlib.markers import CARETLEFT, CARETRIGHT  # their tips are at the value

    made, axes = figure(1.6 + 0.45 * len(shares))
    axes.grid(visible=False, axis="y")
    for row, (certified, attacked, clean) in enumerate(shares.values()):
        words = ("open", "certified (proof)", "survived the attack", "clean") if row == 0 else (None,) * 4
        if not np.isnan(attacked):
            bar: Any = {"height": 0.42, "color": FILLS[0], "edgecolor": "black", "linewidth": 0.6}
            axes.barh(row, attacked - certified, left=certified, label=words[0], **bar)
        axes.plot(certified, row, marker=CARETRIGHT, linestyle="", color=COLORS[0], label=words[1])
        axes.plot(attacked, row, marker=CARETLEFT, linestyle="", color=COLORS[1], label=words[2])
        axes.plot(clean, row, "|", color=COLORS[6], markersize=14, label=words[3])
        sure = wilson(round(certified * about.samples), about.samples)
        axes.plot([sure.low, sure.high], [row - 0.32, row - 0.32], color=COLORS[0], linewidth=1)
    axes.set_yticks(range(len(shares)), [text(name) for name in shares])
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy at eps = {about.eps:.4g} ({about.norm}, pixels in [0, 1])", xlim=(0, 1.02))
    axes.set_title(f"{about}; line: 95 % Wilson of certified", fontsize="small")
    made.legend(*axes.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    save(made, path)


def stages(
    path: Path, counts: Mapping[str, Mapping[str, tuple[int, int]]], open_: Mapping[str, int], about: Caption
) -> None:
    """Plot how many samples each stage of complete verification proved and refuted, and how many stay open.

    Args:
        path: of the plot.
        counts: certified and falsified samples by stage, by network.
        open_: samples without a decision by network.
        about: the caption.
    """
    made, axes = figure(1.6 + 0.5 * sum(len(each) + 1 for each in counts.values()))
    rows = [
        row
        for name, each in counts.items()
        for row in (*((name, stage, *pair, 0) for stage, pair in each.items()), (name, "open", 0, 0, open_[name]))
    ]
    left = np.zeros(len(rows))
    for number, (label, hatch) in enumerate((("certified", ""), ("falsified", "//"), ("open", ".."))):
        values = np.array([row[2 + number] for row in rows], float)
        color = (COLORS[0], FILLS[1], "white")[number]
        axes.barh(
            range(len(rows)), values, left=left, color=color, edgecolor="black", linewidth=0.6, hatch=hatch, label=label
        )
        left += values
    for row, total in enumerate(left):
        axes.text(total, row, f" {int(total)}", va="center", fontsize="small")
    several = len(counts) > 1
    axes.set_yticks(range(len(rows)), [f"{text(name)}: {stage}" if several else stage for name, stage, *_ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="samples that are classified correctly", xlim=(0, max(float(left.max()) * 1.1, 1.0)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"{about}; eps = {about.eps:.4g}", fontsize="small")
    made.legend(*axes.get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=3)
    save(made, path)


def training_curves(path: Path, histories: Mapping[str, list[dict[str, Any]]]) -> None:
    """Plot validation accuracy over the epochs, clean, under PGD and under noise, one colour per network."""
    made, axes = figure()
    drawn = set()
    for number, (name, history) in enumerate(histories.items()):
        epochs = [record["epoch"] + 1 for record in history]
        for metric, style in (("clean", "-"), ("pgd", "--"), ("noisy", ":")):
            values = [record["validation"].get(metric, np.nan) for record in history]
            if not np.isnan(values).all():
                marks = {
                    "marker": MARKERS[number % len(MARKERS)],
                    "markevery": max(1, len(epochs) // 8),
                    "markersize": 4,
                }
                color, words = COLORS[number % len(COLORS)], f"{text(name)}, {metric}"
                drawn.add(metric)
                axes.plot(epochs, values, style, color=color, linewidth=1.4, label=words, **marks)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.02))
    kinds = {"clean": "clean", "pgd": "PGD at the eps of the selection", "noisy": "under noise"}
    axes.set_title("; ".join(words for metric, words in kinds.items() if metric in drawn), fontsize="small")
    axes.legend(fontsize="small", ncols=2)
    save(made, path)
