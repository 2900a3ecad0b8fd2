"""Every objective under one protocol: clean, attacked and certified accuracy, and what was kept of the teacher's.

Students differ in their objective alone; each training's last epoch counts. PGD attacks with margin loss and
cross-entropy from several random starts, at the eps of the table; certificates are CROWN's. ``from-natural`` aligns
with the teacher that was trained without attacks: a control. Rows are kept in artifacts/bench, so that a run goes on
where it stopped; ``--table`` prints what is there.

    uv run python bench/objectives.py digits [--seeds 0,1,2] [--only kd,kdiga] [--table]
    uv run python bench/objectives.py mnist        # needs MNIST in CERTKD_DATA
    uv run python bench/objectives.py cifar10      # needs CIFAR-10; a subset of it, for CPUs
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from certkd.comparison.compare import compare, figures, radii
from certkd.comparison.statistics import at_radius
from certkd.config.settings import DataConfig, ModelConfig, OptimizerConfig, Recipe, TrainConfig
from certkd.data import sources as data
from certkd.networks import checkpoint
from certkd.networks.builders import Classifier
from certkd.networks.resolve import for_training
from certkd.objectives import (
    AdaAd,
    AdCert,
    Adversarial,
    AdvFunMatch,
    Akd,
    Ard,
    Cat,
    CcIbp,
    Iad,
    Ibp,
    Igd,
    Kd,
    Kdiga,
    KdigaCertified,
    Mld,
    Mtard,
    MtlIbp,
    Objective,
    Pag,
    Rslad,
    Saad,
    Sabr,
    Squeeze,
    Standard,
    Taps,
    Trades,
    Uad,
)
from certkd.objectives.adversarial import Attacked
from certkd.training.loop import train
from certkd.training.resume import RESUME, TrainingFolder
from certkd.training.run import Teachers
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Status
from verifiers.geometry.attack import Attack
from verifiers.linearity.agreement import attack_agreement
from verifiers.methods.smoothing import Smoothing
from verifiers.results.rows import Certificates

FOLDER = Path("artifacts/bench")


def everything(eps: float) -> dict[str, Objective]:
    """All objectives for small networks."""
    return {
        "standard": Standard(),
        "adversarial": Adversarial(eps=eps),
        "trades": Trades(eps=eps),
        "ibp": Ibp(eps=eps),
        "mtl_ibp": MtlIbp(eps=eps),
        "sabr": Sabr(eps=eps),
        "kd": Kd(),
        "kdiga(ce)": Kdiga(target="ce", lambda_iga=1),
        "kdiga(ce), random point": Kdiga(target="ce", lambda_iga=1, point="random", eps=eps),
        "kdiga(ce_tempered)": Kdiga(target="ce_tempered", lambda_iga=0.3, target_temperature=20),
        "kdiga(margin)": Kdiga(target="margin", lambda_iga=0.3),
        "kdiga(margin), lambda 0.1": Kdiga(target="margin", lambda_iga=0.1),
        "kdiga(margin), lambda 1": Kdiga(target="margin", lambda_iga=1),
        "kdiga(projection)": Kdiga(target="projection"),
        "kdiga(projection), lambda 0.3": Kdiga(target="projection", lambda_iga=0.3),
        "kdiga(projection), lambda 3": Kdiga(target="projection", lambda_iga=3),
        "kdiga(projection), ramp 0.7": Kdiga(target="projection", ramp=0.7),
        "kdiga(projection), norm 1": Kdiga(target="projection", lambda_iga=0.09, norm=1),
        "kdiga(projection), teacher correct": Kdiga(target="projection", mask="teacher_correct"),
        "kdiga(jacobian)": Kdiga(target="jacobian", lambda_iga=0.3),
        "kdiga(jacobian), lambda 0.9": Kdiga(target="jacobian", lambda_iga=0.9),
        "kdiga(jacobian), lambda 3": Kdiga(target="jacobian", lambda_iga=3),
        "kdiga(finite_difference)": Kdiga(target="finite_difference", point="random", eps=eps, lambda_iga=10),
        "kdiga(projection), adversarial point": Kdiga(point="adversarial", eps=eps),
        "kdiga_certified": KdigaCertified(eps=eps),
        "kdiga_certified, lambda 0.03": KdigaCertified(eps=eps, lambda_deficit=0.03),
        "kdiga_certified, lambda 0.1": KdigaCertified(eps=eps, lambda_deficit=0.1),
        "kdiga_certified, ibp": KdigaCertified(eps=eps, bound="ibp"),
        "kdiga_certified, ibp, lambda 0.1": KdigaCertified(eps=eps, bound="ibp", lambda_deficit=0.1),
        "ard": Ard(eps=eps),
        "kdiga(kl at PGD examples alone)": Kdiga(lambda_iga=0, kl_point="adversarial", eps=eps),
        "rslad": Rslad(eps=eps),
        "iad": Iad(eps=eps),
        "adaad": AdaAd(eps=eps),
        "adaad, igdm": AdaAd(eps=eps, lambda_igdm=1),
        "advfunmatch": AdvFunMatch(eps=eps),
        "akd": Akd(eps=eps),
        "mtard": Mtard(eps=eps),
        "igd": Igd(eps=eps),
        "squeeze": Squeeze(eps=eps),
        "uad": Uad(eps=eps),
        "saad": Saad(eps=eps),
        "mld": Mld(eps=eps),
        "cat": Cat(eps=eps),
        "pag": Pag(),
        "cc_ibp": CcIbp(eps=eps),
        "taps": Taps(eps=eps),
        "ad_cert": AdCert(eps=eps),
    }


def chosen(*names: str) -> Callable[[float], dict[str, Objective]]:
    """Some of them."""
    return lambda eps: {name: everything(eps)[name] for name in names}


@dataclass(frozen=True)
class Study:
    """A data set, a teacher, students, their objectives, and how all are trained and measured."""

    data: DataConfig
    teacher: ModelConfig
    students: Mapping[str, ModelConfig]
    eps: tuple[str, ...]
    objectives: Callable[[float], dict[str, Objective]]
    teacher_recipe: Recipe
    recipe: Recipe
    train_limit: int | None = None
    test_limit: int = 10**9
    held_out: int = 500
    certified_limit: int = 10**9
    steps: int = 10
    methods: tuple[str, ...] = ("crown",)
    smoothing: tuple[str, dict[str, Any]] | None = None
    both_losses: bool = False  # tell attacks on the cross-entropy and on the margin apart
    attack: Mapping[str, Any] = field(default_factory=lambda: {"steps": 50, "restarts": 5})
    #: Over which share of a training eps grows; without it, the teacher at 0.2 on MNIST predicts a constant.
    ramp: Mapping[str, float] = field(default_factory=dict)


STEPS = OptimizerConfig(rate=2e-3, milestones=(0.6,))
STUDIES = {
    "digits": Study(
        DataConfig(),
        ModelConfig(options={"hidden": [256, 256]}),
        {"mlp": ModelConfig(options={"hidden": [64, 64]})},
        ("0.1",),
        everything,
        Recipe(epochs=100, optimizer=STEPS),
        Recipe(epochs=150, optimizer=STEPS),
    ),
    "mnist": Study(
        DataConfig(name="mnist"),
        ModelConfig(name="certkd:cnn", options={"width": 8, "hidden": 64}, normalize=False),
        {
            "cnn": ModelConfig(name="certkd:cnn", options={"width": 4, "hidden": 32}, normalize=False),
            "mlp": ModelConfig(options={"hidden": [100, 100]}, normalize=False),
        },
        ("0.1", "0.2"),
        chosen(
            "standard",
            "kd",
            "kdiga(ce)",
            "kdiga(margin)",
            "kdiga(projection)",
            "kdiga(jacobian)",
            "kdiga_certified",
            "kdiga_certified, lambda 0.1",
            "ard",
            "rslad",
            "adaad, igdm",
            "kdiga(ce_tempered)",
            "kdiga(projection), adversarial point",
            "iad",
            "adversarial",
            "ibp",
        ),
        Recipe(epochs=10, optimizer=STEPS),
        Recipe(epochs=8, optimizer=STEPS),
        train_limit=10000,
        test_limit=300,
        certified_limit=100,
        attack={"steps": 30, "restarts": 2},
        ramp={"0.2": 0.7},
    ),
    "cifar10": Study(
        DataConfig(name="cifar10"),
        ModelConfig(name="torchvision:resnet18"),
        {
            "resnet-20": ModelConfig(name="certkd:resnet", options={"depth": 20}),
            "mobilenet_v2": ModelConfig(name="torchvision:mobilenet_v2"),
            "resnet-8": ModelConfig(name="certkd:resnet", options={"depth": 8}),
        },
        ("8/255",),
        chosen(
            "standard",
            "kd",
            "kdiga(ce)",
            "kdiga(projection)",
            "kdiga(projection), ramp 0.7",
            "ard",
            "rslad",
            "adaad, igdm",
        ),
        Recipe(epochs=6, batch_size=32, optimizer=OptimizerConfig(rate=1e-3, milestones=(0.65,))),
        Recipe(epochs=12, batch_size=32, optimizer=OptimizerConfig(rate=2e-3, milestones=(0.65,))),
        train_limit=1500,
        test_limit=200,
        held_out=50,
        steps=3,
        methods=("ibp",),
        both_losses=True,
        attack={"steps": 20, "restarts": 1},
        smoothing=("0.25", {"sigma": 0.12, "n": 500}),
    ),
}


class Run:
    """One study with one seed and one eps."""

    def __init__(self, name: str, seed: int, eps: str) -> None:
        self.study, self.seed, self.eps = STUDIES[name], seed, eps
        self.folder = FOLDER / name / f"eps-{eps.replace('/', '_')}" / f"seed-{seed}"
        self.data = data.load(self.study.data)
        limit = self.study.train_limit
        whole = self.data.splits["train"]
        self.fit = whole if limit is None else whole.take(torch.arange(limit))
        held = self.data.splits["validation"]
        self.held_out = held.take(torch.arange(min(len(held), self.study.held_out)))
        test = self.data.splits["test"]
        self.test = test.take(torch.arange(min(len(test), self.study.test_limit)))

    def network(
        self, name: str, model: ModelConfig, objective: Objective, recipe: Recipe, **teachers: Classifier | None
    ) -> Classifier:
        """The last epoch's network of a training, which goes on where it stopped."""
        out = self.folder / name.replace("/", "-").replace(" ", "")
        if not (out / "done").exists():
            student = for_training(model, self.data, self.seed)
            config = TrainConfig(**dict(recipe), objective=self.suited(objective), seed=self.seed)
            train(
                student,
                {"train": self.fit, "validation": self.held_out},
                config,
                teacher=Teachers(teachers.get("teacher"), teachers.get("natural_teacher")),
                out=TrainingFolder(out, resume=(out / RESUME).exists()),
            )
            (out / "done").touch()
        return checkpoint.load(out / "last.pt").model

    def suited(self, objective: Objective) -> Objective:
        """The objective with the study's steps of attacks, and its growth of eps where attacks have one."""
        changes: dict[str, Any] = {"steps": self.study.steps} if hasattr(objective, "steps") else {}
        share = self.study.ramp.get(self.eps)
        if share is not None and isinstance(objective, Attacked):
            changes["ramp"] = share
        if share is not None and getattr(objective, "point", "") == "adversarial":
            changes["eps_ramp"] = share
        return objective.model_copy(update=changes)

    def first(self, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of the first test samples."""
        rows = torch.arange(min(len(self.test), limit))
        return self.test.images[rows], self.test.labels[rows]

    def certificates(self, model: Classifier, methods: Sequence[str], limit: int, **options: Any) -> Certificates:
        """Attack or proofs on the first test images."""
        config = CertifyConfig(eps=self.eps, methods=methods, options=options)
        return certify(model, self.first(limit), config)

    def smoothed(self, model: Classifier) -> float | None:
        """Certified accuracy of the smoothed network, where the study asks for it."""
        if self.study.smoothing is None:
            return None
        eps, options = self.study.smoothing
        config = CertifyConfig(eps=eps, norm="l2", methods=(Smoothing(**options),))
        return figures(certify(model, self.first(20), config)).certified

    def rows(self, known: set[tuple[str, str]], only: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What each network reaches, those that are not known yet."""
        study, eps = self.study, Epsilon.parse(self.eps).value
        robust = self.network("teacher", study.teacher, Adversarial(eps=eps), study.teacher_recipe)
        natural = self.network("natural", study.teacher, Standard(), study.teacher_recipe)
        reference = self.proofs(robust)
        for name, model in (("robust", robust), ("natural", natural)):
            if ("teacher", name) not in known:
                yield self.row("teacher", name, reference, model)
        control = {"from-natural": Kdiga()}
        for student, config in study.students.items():
            for name, objective in {**study.objectives(eps), **control}.items():
                if (student, name) in known or (only and name not in only):
                    continue
                main = natural if name == "from-natural" else robust
                trained = self.network(
                    f"{student}-{name}", config, objective, study.recipe, teacher=main, natural_teacher=natural
                )
                yield self.row(student, name, reference, trained)

    def by_loss(self, model: Classifier) -> dict[str, float]:
        """Accuracy under one attack on the cross-entropy and one on the margin."""
        if not self.study.both_losses:
            return {}
        images, labels = self.first(len(self.test))
        eps = Epsilon.parse(self.eps).value
        found = attack_agreement(model, model, images, labels, Attack(eps, Norm.LINF, **self.study.attack))
        return {
            "pgd on ce": 1 - float(found.ce.float().mean()),
            "pgd on margin": 1 - float(found.margin.float().mean()),
        }

    def proofs(self, model: Classifier) -> Certificates:
        """Certificates of the first test images."""
        return self.certificates(model, self.study.methods, self.study.certified_limit)

    def row(self, student: str, name: str, teacher: Certificates, model: Classifier) -> dict[str, Any]:
        """One line of the table."""
        attacked = self.certificates(model, ("pgd",), self.study.test_limit, **self.study.attack)["pgd"]
        right, own = attacked["correct"].astype(bool), self.proofs(model)
        side, result = figures(own), compare(teacher, own)
        return {
            "student": student,
            "objective": name,
            "clean": float(right.mean()),
            "pgd": float((right & (attacked["status"] != Status.FALSIFIED)).mean()),
            **self.by_loss(model),
            "certified": side.certified,
            "mean_radius": side.mean_radius,
            "retention": result.retention.value,
            "retention at eps/2": at_radius(teacher.eps / 2, radii(own), radii(teacher)).retention,
            "smoothed": self.smoothed(model),
        }


def measure(name: str, seed: int, eps: str, only: Sequence[str]) -> None:
    """Add the rows of one study, seed and eps that are not there yet."""
    run = Run(name, seed, eps)
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / "rows.jsonl"
    known = {(row["student"], row["objective"]) for row in read(path)}
    for row in run.rows(known, only):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(seed, eps, json.dumps(row), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


COLUMNS = (
    "clean",
    "pgd",
    "pgd on ce",
    "pgd on margin",
    "certified",
    "retention",
    "retention at eps/2",
    "mean_radius",
    "smoothed",
)


def table(name: str) -> str:
    """Means over the seeds, with standard deviations where there are several."""
    lines = []
    for eps in STUDIES[name].eps:
        folder = FOLDER / name / f"eps-{eps.replace('/', '_')}"
        rows = [row for path in sorted(folder.glob("seed-*/rows.jsonl")) for row in read(path)]
        used = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
        lines += [f"{name}, linf eps {eps}", "", f"| student | objective | weight | seeds | {' | '.join(used)} |"]
        lines += ["| --- | --- | --: | --: |" + " --: |" * len(used)]
        keys = dict.fromkeys((row["student"], row["objective"]) for row in rows)
        students = list(dict.fromkeys(student for student, _ in keys))
        for key in sorted(keys, key=lambda key: students.index(key[0])):
            same = [row for row in rows if (row["student"], row["objective"]) == key]
            cells = [figure([row.get(column) for row in same], column) for column in used]
            lines.append(f"| {key[0]} | {key[1]} | {weight(key[1], eps)} | {len(same)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def weight(name: str, eps: str) -> str:
    """lambda_iga of an objective that aligns, and lambda_deficit of one that certifies."""
    objective = {**everything(Epsilon.parse(eps).value), "from-natural": Kdiga()}.get(name)
    weights = [getattr(objective, which, 0) for which in ("lambda_iga", "lambda_deficit")]
    return ", ".join(f"{value:g}" for value in weights if value) or "-"


def figure(values: list[float | None], column: str) -> str:
    """Mean and standard deviation of what is known, as per cent where they are shares."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "-"
    scale, digits = (1.0, 4) if column == "mean_radius" else (100.0, 1)
    mean = f"{scale * statistics.fmean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ({scale * statistics.stdev(known):.{digits}f})"


def main() -> None:
    """Measure what is missing, then print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("study", choices=STUDIES)
    arguments.add_argument("--seeds", default="0,1,2")
    arguments.add_argument("--only", default="", help="objectives, by name, separated by ';'")
    arguments.add_argument("--table", action="store_true")
    given = arguments.parse_args()
    if not given.table:
        torch.set_num_threads(1)
        for seed in given.seeds.split(","):
            for eps in STUDIES[given.study].eps:
                measure(given.study, int(seed), eps, [name for name in given.only.split(";") if name])
    print(table(given.study))


if __name__ == "__main__":
    main()
