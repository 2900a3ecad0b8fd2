"""``certkd verify``."""

from typing import Any

import click

from certkd.cli.networks import loader, named_data, network
from certkd.cli.options import Value, Whole, data_options, network_options
from verifiers.core.errors import InputError


@click.command()
@click.argument("file", metavar="FILE.h5")
@click.option("--model", required=True, metavar="NETWORK", help="The network that the file is about.")
@click.option("--sample", type=Whole(0), default=50, show_default=True, help="Number of certificates to prove again.")
@click.option(
    "--time-limit", type=Value(), metavar="SECONDS", default=30, show_default=True, help="Limit for each certificate."
)
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the choice.")
@network_options
@data_options
def verify(file: str, model: str, **options: Any) -> int:
    """Check a certificate file against the network that it is about.

    The hashes of weights, layers and images must be those in the file. Randomly chosen certificates are attacked and
    proved again, by the other engine if it takes the network and by branch and bound; all stored counterexamples are
    run again. Any contradiction is printed, and the exit code is 1.
    """
    from certkd.certification import rows_of
    from certkd.networks import resolve as networks
    from certkd.report import tables
    from certkd.report.console import CertifyProgress, display, stderr
    from verifiers.certify.verify import VerifyConfig, contradictions
    from verifiers.certify.verify import verify as verify_file
    from verifiers.results.reader import read
    from verifiers.runtime.device import choose_device
    from verifiers.runtime.samples import Data

    settings = VerifyConfig.parse({name: options[name] for name in ("sample", "seed", "time_limit")}, source="verify")
    certificates, load = read(file), loader()
    about = certificates.attributes
    if not (about.get("data") and about.get("split")):
        raise InputError(f"{file} does not say what data it is about: it was not written by certkd certify")
    options |= {"data": str(about["data"]), "kinds": {model.endswith(".onnx")}}
    known = network(model, options, load)
    config = networks.data_of(known, named_data(options))
    seed = int(about.get("data_seed", config.seed))
    samples = rows_of(certificates, load(config.model_copy(update={"seed": seed})))
    network_ = known.model.to(choose_device(options["device"] or "auto"))
    given = Data(samples.images, samples.labels)
    findings = verify_file(network_, file, given, settings, CertifyProgress(model))
    display(*tables.verification(findings))
    failed = contradictions(findings)
    for line in failed:
        stderr().print(f"contradiction: {line}", soft_wrap=True)
    return 1 if failed else 0
