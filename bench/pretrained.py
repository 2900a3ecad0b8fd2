"""A robust teacher's robustness in a pre-trained student of another kind: what fine-tuning gains and what it costs.

The student is a small vision transformer that was trained on MNIST without attacks and stored. From that checkpoint it
is fine-tuned with each objective, all else equal. Its teacher is an adversarially trained CNN without normalisation,
while the student normalises its images: gradients are compared in pixels. Clean accuracy is that of all test images,
PGD that of the first of them; each change is to the checkpoint, image by image, with its standard error. Rows are kept
in artifacts/bench, so that a run goes on where it stopped; ``--table`` prints what is there.

    uv run python bench/pretrained.py [--seed 0] [--only 'kd;kdiga(ce)'] [--table]       # needs MNIST in CERTKD_DATA
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from objectives import FOLDER, STEPS, STUDIES, Run, Study, chosen, read
from timing import machine

from certkd.comparison.statistics import paired
from certkd.config.settings import DataConfig, ModelConfig, OptimizerConfig, Recipe
from certkd.networks.builders import Classifier
from certkd.objectives import Adversarial, Kdiga, Objective, Standard
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.quantities import Epsilon
from verifiers.core.status import Status
from verifiers.methods.pgd import Pgd
from verifiers.runtime.modes import eval_mode

EPS, ATTACKS = "0.1", ("0.03", "0.1")
START = "pre-trained student"
VIT = ModelConfig(
    name="timm:vit_tiny_patch16_224", options={"patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
)
PRETRAINING = Recipe(epochs=15, optimizer=OptimizerConfig(schedule="cosine", warmup=1))


def students(eps: float) -> dict[str, Objective]:
    """What the student is fine-tuned by; the projection at a third of its default weight too."""
    known = chosen("standard", "kd", "kdiga(ce)", "kdiga(projection)", "kdiga(finite_difference)")(eps)
    return {**known, "kdiga(projection), lambda 0.3": Kdiga(target="projection", lambda_iga=0.3)}


STUDY = Study(
    DataConfig(name="mnist"),
    ModelConfig(name="certkd:cnn", options={"width": 8, "hidden": 64}, normalize=False),
    {"vit": VIT},
    (EPS,),
    students,
    Recipe(epochs=8, optimizer=STEPS),
    Recipe(epochs=5, optimizer=OptimizerConfig(rate=5e-4, milestones=(0.6,))),
    train_limit=12000,
    test_limit=300,
    steps=7,
    attack={"steps": 20, "restarts": 2},
)
STUDIES["pretrained"] = STUDY


class FineTuning(Run):
    """The study with one seed: teacher, pre-trained student, and what each objective makes of it."""

    def __init__(self, seed: int) -> None:
        super().__init__("pretrained", seed, EPS)

    def rows(self, known: set[str], only: Sequence[str]) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """What each network reaches, those that are not known yet."""
        eps = Epsilon.parse(EPS).value
        teacher = self.network("teacher", STUDY.teacher, Adversarial(eps=eps), STUDY.teacher_recipe)
        start = self.network("start", VIT, Standard(), PRETRAINING)
        before = self.right(start)
        for name, model in (("teacher", teacher), (START, start)):
            if name not in known:
                yield outcome(name, self.right(model), before)
        stored = ModelConfig(name=str(self.folder / "start" / "last.pt"))
        for name, objective in STUDY.objectives(eps).items():
            if name not in known and (not only or name in only):
                student = self.network(name, stored, objective, STUDY.recipe, teacher=teacher)
                yield outcome(name, self.right(student), before)

    def right(self, model: Classifier) -> dict[str, Bool[np.ndarray, " samples"]]:
        """By column of the table: which test images are classified correctly, under attack where it names an eps."""
        split = self.data.splits["test"]
        with torch.no_grad(), eval_mode(model):
            parts = [
                model(split.images[rows]).argmax(1) == split.labels[rows]
                for rows in torch.arange(len(split)).split(500)
            ]
        return {"clean": torch.cat(parts).numpy(), **{f"PGD {eps}": self.robust(model, eps) for eps in ATTACKS}}

    def robust(self, model: Classifier, eps: str) -> Bool[np.ndarray, " samples"]:
        """Which of the attacked test images are classified correctly and stay so under PGD."""
        images = self.test.images[torch.arange(len(self.test))]
        config = CertifyConfig(eps=eps, methods=(Pgd(**STUDY.attack),))
        columns = certify(model, (images, self.test.labels), config)["pgd"]
        return columns["correct"].astype(bool) & (columns["status"] != Status.FALSIFIED.value)


Right = Mapping[str, Bool[np.ndarray, " samples"]]


def outcome(name: str, ours: Right, before: Right) -> dict[str, Any]:
    """One line of the table: shares, and their changes to the pre-trained student with paired standard errors."""
    row: dict[str, Any] = {"network": name}
    for column, right in ours.items():
        difference = paired(right, before[column])
        row[column] = [float(right.mean()), difference.mean, difference.standard_error]
    return row


def measure(seed: int, only: Sequence[str]) -> None:
    """Add the rows of one seed that are not there yet."""
    run = FineTuning(seed)
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / "rows.jsonl"
    for row in run.rows({row["network"] for row in read(path)}, only):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def table(seed: int) -> str:
    """The rows of one seed, in per cent and percentage points."""
    columns = ["clean", *(f"PGD {eps}" for eps in ATTACKS)]
    lines = [
        f"MNIST, linf, seed {seed}. Clean: all test images, PGD: the first {STUDY.test_limit}. Per cent; changes to "
        "the pre-trained student in points, with paired standard errors.",
        "",
        f"| network | {' | '.join(f'{column} | change' for column in columns)} |",
        "| --- |" + " --: | --: |" * len(columns),
    ]
    for row in read(FOLDER / "pretrained" / f"eps-{EPS}" / f"seed-{seed}" / "rows.jsonl"):
        cells = [cell for column in columns for cell in figures(*row[column], shown=row["network"] != START)]
        lines.append(f"| {' | '.join([row['network'], *cells])} |")
    return "\n".join(lines)


def figures(share: float, change: float, error: float, *, shown: bool) -> tuple[str, str]:
    """A share, and its change where it is not that of a network to itself."""
    return f"{100 * share:.1f}", f"{100 * change:+.1f} ± {100 * error:.1f}" if shown else ""


def main() -> None:
    """Measure what is missing, then print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", default="", help="objectives, by name, separated by ';'")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        measure(given.seed, [name for name in given.only.split(";") if name])
    print(f"{machine()}\n\n{table(given.seed)}")


if __name__ == "__main__":
    main()
