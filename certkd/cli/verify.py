"""``certkd verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.networks import check_network, loader, named_data, network, teacher_of
from certkd.cli.options import (
    Value,
    Whole,
    bare_or_named,
    data_options,
    network_options,
    teacher_options,
    workers_options,
)
from certkd.cli.output import Command
from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from certkd.data.splits import Split
    from verifiers.results.rows import Certificates


@click.command(cls=Command)
@click.argument("file", metavar="FILE.h5")
@click.argument("bare", metavar="[NETWORK]", required=False)
@click.option("--model", metavar="NETWORK", help="The same: the network that the file is about.")
@click.option("--teacher", metavar="NETWORK", help="The teacher, if the file compares with one.")
@click.option("--sample", type=Whole(0), default=50, show_default=True, help="Rows to run and prove again.")
@click.option(
    "--time-limit", type=Value(), metavar="SECONDS", default=30, show_default=True, help="Limit for each proof."
)
@click.option("--seed", type=Whole(0), help="Draws the rows.  [default: a new one each time]")
@click.option(
    "--adversarial", metavar="FILE", help="Only compare with saved adversarial images: .pt, .pth, .npz, .npy."
)
@click.option("--data", metavar="NAME", help="Where its data are now, if they were moved.  [default: the file's]")
@workers_options
@network_options
@teacher_options
@data_options
def verify(file: str, bare: str | None, model: str | None, teacher: str | None, **options: Any) -> int:
    """Audit a certificate file against the NETWORK that it is about.

    The hashes of weights, layers and images must be those in the file. Everything that follows from other columns is
    computed again, every radius is attacked, and every stored counterexample runs once more. Rows drawn at random are
    run again by their own method, and their radii are proved again by the other engine where it takes the network and
    by branch and bound. The exit code is 0 only if every claim was looked at and holds; otherwise it is 1, and lines
    name the contradictions, or the claims that nothing looked at.

    With --adversarial, images that another tool saved for these samples, in their order, are run instead, and compared
    with the rows: an image that fools the network within a proved radius is a contradiction.
    """
    from certkd.certification import about_of, rows_of
    from certkd.networks import resolve as networks
    from certkd.report import tables
    from certkd.report.console import display, record, stderr
    from certkd.report.progress import CertifyProgress
    from verifiers.certify.verify import VerifyConfig
    from verifiers.certify.verify import verify as verify_file
    from verifiers.results.reader import read
    from verifiers.runtime.device import choose_device
    from verifiers.runtime.samples import Data

    model = bare_or_named(bare, model, "--model", f"certkd verify {file} student.pt")
    settings = VerifyConfig.parse(
        {name: options[name] for name in ("sample", "seed", "time_limit", "workers", "cluster")}, source="verify"
    )
    certificates, load = read(file), loader()
    for name in (model, teacher):
        if name is not None:
            check_network(name)
    about = certificates.attributes
    if not (about.get("data") and about.get("split")):
        raise InputError(f"{file} does not say what data it is about: it was not written by certkd certify")
    kinds = {name.endswith(".onnx") for name in (model, teacher) if name}
    options |= {"data": options["data"] or str(about["data"]), "kinds": kinds}
    known, reference = network(model, options, load), None if teacher is None else teacher_of(teacher, options, load)
    config = networks.data_of(known, named_data(options))
    seed = int(about.get("data_seed", config.seed))
    samples = rows_of(certificates, load(config.model_copy(update={"seed": seed})))
    device = choose_device(options["device"] or "auto")
    if options["adversarial"] is not None:
        return _adversarial(certificates, known.model.to(device), samples, options["adversarial"])
    audit = verify_file(
        known.model.to(device),
        file,
        Data(samples.images, samples.labels, about=about_of(known)),
        settings,
        teacher=None if reference is None else reference.model.to(device),
        reporter=CertifyProgress(model),
    )
    display(*tables.verification(audit))
    record(holds=audit.holds, contradictions=list(audit.contradictions), missing=list(audit.missing))
    for line in audit.contradictions:
        stderr().print(f"contradiction: {line}", soft_wrap=True)
    return 0 if audit.holds else 1


def _adversarial(certificates: "Certificates", model: "nn.Module", samples: "Split", file: str) -> int:
    """Compare a certificate file with adversarial images of another tool."""
    import torch

    from certkd.exchange.adversarial import compare, read_adversarial
    from certkd.report.console import display, stderr
    from verifiers.runtime.fingerprint import weights_sha256

    there, given = str(certificates.attributes.get("model_sha256", "")), weights_sha256(model)
    if there != given:
        raise InputError(f"{certificates.path} is about another network (sha256 {there[:16]}, not {given[:16]})")
    found = read_adversarial(Path(file))
    images, _ = samples.batch(torch.arange(len(samples)), torch.device("cpu"))
    result = compare(certificates, model, images, found)
    display(*result.lines)
    for line in result.contradictions:
        stderr().print(f"contradiction: {line}", soft_wrap=True)
    return 1 if result.contradictions else 0
