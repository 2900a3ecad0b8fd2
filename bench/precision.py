"""What bfloat16 does to KDIGA's alignment: its term and the direction of its gradient in the student's weights.

The networks that ship, on the first 128 training digits; float32 is the reference.

    uv run python bench/precision.py
"""

from pathlib import Path

import torch

from certkd.config.settings import DataConfig, Recipe
from certkd.data import sources as data
from certkd.networks import checkpoint
from certkd.objectives import Kdiga
from certkd.objectives.base import Batch
from certkd.training.step import backward

FOLDER = Path("artifacts/reference/digits")
OBJECTIVES = {
    "ce": Kdiga(target="ce", lambda_ce=0, lambda_kl=0),
    "ce_tempered": Kdiga(target="ce_tempered", lambda_ce=0, lambda_kl=0),
    "margin": Kdiga(target="margin", lambda_ce=0, lambda_kl=0),
    "projection": Kdiga(target="projection", lambda_ce=0, lambda_kl=0),
    "jacobian": Kdiga(target="jacobian", lambda_ce=0, lambda_kl=0),
    "finite_difference": Kdiga(target="finite_difference", lambda_ce=0, lambda_kl=0, point="random", eps=0.1),
}


def measured(student: str, objective: Kdiga, precision: str) -> tuple[float, torch.Tensor]:
    """The alignment term and its gradient in all weights."""
    networks = [checkpoint.load(FOLDER / f"{name}.pt").model.eval() for name in (student, "teacher")]
    x, y = data.load(DataConfig()).splits["train"].batch(torch.arange(128), torch.device("cpu"))
    batch = Batch(networks[0], networks[1].requires_grad_(False), x, y, torch.Generator().manual_seed(0))
    terms, _ = backward(objective, batch, Recipe(precision=precision))  # type: ignore[arg-type]
    slopes = [weight.grad.flatten() for weight in networks[0].parameters() if weight.grad is not None]
    return float(terms["iga"].value), torch.cat(slopes)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"1 thread, torch {torch.__version__}\n")
    print("| student | target | float32 | bfloat16 | change | cosine of the gradients |")
    print("| --- | --- | --: | --: | --: | --: |")
    for student in ("standard", "kd", "kdiga"):
        for target, objective in OBJECTIVES.items():
            (exact, slope), (value, other) = (measured(student, objective, kind) for kind in ("float32", "bfloat16"))
            cosine = float(torch.cosine_similarity(slope, other, dim=0))
            change = f"{value / exact - 1:+.2%}"
            print(f"| {student} | {target} | {exact:.4f} | {value:.4f} | {change} | {cosine:.4f} |")


if __name__ == "__main__":
    main()
