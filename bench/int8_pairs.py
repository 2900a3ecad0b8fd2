"""An int8 copy and its original: what the difference of every neuron adds to bounds of both in one graph.

Bounds by CROWN of the samples of a test split: on how many the copy provably gives the original's class, and on how
many it is close to it and not worse, at a tolerance in logits, with the relation of neurons and without; the mean bound
of the difference of two logits; CPU seconds a sample. It fails where a row is looser with the relation.

    certkd compress artifacts/reference/digits/kdiga.pt --how int8 --out copy.onnx
    uv run python bench/int8_pairs.py copy.onnx artifacts/reference/digits/kdiga.pt digits --eps 0.02,0.05,0.1
"""

import argparse
import time

from timing import machine

from certkd.config.settings import DataConfig
from certkd.data import sources
from certkd.networks import resolve
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.relations import screened, screening_rows
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.relation import Property, Relation
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program


def main() -> None:
    """Print a row for each eps, without the relation and with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("copy")
    parser.add_argument("original")
    parser.add_argument("data")
    parser.add_argument("--eps", default="0.05")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--tolerance", type=float, default=1.0)
    given = parser.parse_args()
    data = sources.load(DataConfig(name=given.data))
    x = data.splits["test"].images[: given.samples]
    networks = [resolve.load(name, data=data).model.eval() for name in (given.copy, given.original)]
    programs = [Program(network, paired=True) for network in networks]
    predicted = networks[1](x).argmax(1)
    engine = JointEngine(programs[0], programs[1], x[:2], Arithmetic.INT8)
    assert engine.coupled is not None, "the networks are no chains of the same layers"
    print(machine())
    print(f"| eps | relation | same class | close to {given.tolerance:g} | not worse | mean bound of S - T | CPU s |")
    print("| --- |" + " --- |" * 6)
    relations = [
        Relation(Property.SAME_CLASS),
        *(Relation(k, given.tolerance) for k in (Property.CLOSE, Property.NOT_WORSE)),
    ]
    for eps in given.eps.split(","):
        balls, found = Balls.around(x.double(), Epsilon.parse(eps).value, Norm.LINF), []
        for coupled in (None, engine.coupled):
            engine.coupled, started = coupled, time.process_time()
            bounds = [engine.ask(balls, screening_rows(r, predicted, data.classes), "crown").bound for r in relations]
            spent = (time.process_time() - started) / len(x)
            proved = [int((screened(r, b) > 0).sum()) for r, b in zip(relations, bounds, strict=True)]
            found.append(bounds)
            cells = [
                eps,
                "without" if coupled is None else "with",
                *proved,
                f"{float(bounds[1].mean()):.3f}",
                f"{spent:.3f}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        assert all((b >= a).all() for a, b in zip(*found, strict=True)), "a row is looser"


if __name__ == "__main__":
    main()
