"""``certkd gate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.certify import certified, certify
from certkd.cli.options import (
    Assignment,
    EpsilonType,
    Number,
    data_options,
    network_options,
    run_options,
    sample_options,
)
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import InputError, loading
from verifiers.core.quantities import Epsilon

if TYPE_CHECKING:
    import numpy as np

    from certkd.comparison.gate import Rule
    from certkd.report.gate import Gated
    from verifiers.results.rows import Certificates

#: The chance of a wrong answer, unless it is chosen.
ALPHA = "0.05"
#: How the name of a certificate file ends.
_FILES = (".h5", ".hdf5")
#: What is written besides certificates, by option, with the end of its name.
_REPORTS = {"junit": ".xml", "summary": ".md"}
#: What two certificate files take too.
_ALWAYS = ("new", "shipped", "conditions", "alpha", "overwrite", *_REPORTS)


@click.command(cls=Command)
@click.argument("new")
@click.option("--shipped", required=True, metavar="NETWORK", help="The network that the new one replaces.")
@click.option("--eps", type=EpsilonType(), help="Radius in pixel units, like 2/255.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1.")
@click.option(
    "--require", "conditions", multiple=True, required=True, metavar="CONDITION", help="Like 'certified>=0.95*shipped'."
)
@click.option("--alpha", type=Number(), default=ALPHA, show_default=True, help="Chance of a wrong answer, at most.")
@click.option("--methods", default="pgd,crown", show_default=True, help="See 'certkd methods'.")
@click.option("--option", "settings", multiple=True, type=Assignment(), help="A method's setting, like steps=50.")
@click.option("--junit", metavar="FILE", help="Also write JUnit XML.")
@click.option("--summary", metavar="FILE", help="Also write Markdown, for a pull request.")
@sample_options
@run_options
@network_options
@data_options
@click.pass_context
def gate(ctx: click.Context, new: str, shipped: str, conditions: tuple[str, ...], **options: Any) -> int:
    """Decide whether a new network may replace the shipped one.

    NEW and --shipped are networks, which are certified where that is missing, or certificate files of both. A
    condition is METRIC>=NUMBER or METRIC>=FACTOR*shipped, plus or minus a number. METRIC is certified, clean or pgd
    (as in 'certkd compare'), retention, or same-class: the share of samples on whose ball the new network provably
    gives the shipped one's class. A condition is about all images like the samples. Exit code 0: all are met. 1: one
    failed. 2: n samples cannot decide, or bad input. An answer is wrong with probability alpha at most.
    """
    from certkd.comparison.gate import Rule
    from certkd.files import write_whole
    from certkd.report.console import display
    from certkd.report.gate import junit, markdown

    rules = [Rule.parse(text) for text in conditions]
    alpha, places = options.pop("alpha"), {name: options.pop(name) for name in _REPORTS}
    if not 0 < alpha < 1:
        raise InputError(f"--alpha must be between 0 and 1, got {alpha:g}")
    for name, place in places.items():
        if place is not None:
            new_file(place, (_REPORTS[name],), overwrite=options["overwrite"], option=f"--{name}")
    files = _files(ctx, new, shipped, rules, options)
    with loading(f"{new} or {shipped}", "a certificate file"):
        found = _decided(files, rules, alpha)
    code = said(found)
    if not new.endswith(_FILES):
        display(f"certificates: {found.names[0]} and {found.names[1]}")
    for name, write in (("junit", junit), ("summary", markdown)):
        if places[name] is not None:
            text = write(found)
            write_whole(Path(places[name]), lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
            display(f"written to {places[name]}")
    return code


def said(found: "Gated") -> int:
    """Print an answer; return its exit code."""
    from certkd.report.console import display, record, stderr
    from verifiers.core.table import counted

    record(**found.to_dict())
    display(*found.lines())
    if found.verdict == "undecided":
        samples, alpha = counted(int(found.facts["samples"]), "sample"), found.facts["alpha"]
        stderr().print(f"certkd: {samples} cannot decide at alpha {alpha}: certify more, or loosen the requirement")
    return {"met": 0, "failed": 1, "undecided": 2}[found.verdict]


def _check_unused(ctx: click.Context) -> None:
    """Refuse options of certifying where both files are there: they would change nothing."""
    for param in ctx.command.params:
        unused = param.expose_value and param.name not in _ALWAYS
        chosen = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
        if unused and chosen:
            raise InputError(
                f"{param.opts[0]} is for networks; two certificate files are compared as they are: drop it"
            )


def _files(
    ctx: click.Context, new: str, shipped: str, rules: "list[Rule]", options: dict[str, Any]
) -> "tuple[Certificates, Certificates]":
    """Read both files, or certify both networks."""
    from certkd.report.console import Mode, begin, current
    from verifiers.results.reader import read

    given = [name.endswith(_FILES) for name in (new, shipped)]
    if all(given):
        _check_unused(ctx)
        return read(new), read(shipped)
    eps: Epsilon | None = options.pop("eps")
    if any(given):
        raise InputError(f"{new} and {shipped}: give two networks, or the certificate files of both")
    if eps is None:
        raise InputError("which radius? Give --eps, like --eps 2/255")
    methods = options.pop("methods")
    methods += ",match" if any(rule.metric == "same-class" for rule in rules) and "match" not in methods else ""
    before = current()
    begin(Mode(before.quiet, plain=True))  # its tables are not this command's answer
    try:
        run = click.Command("gate", params=certify.params, callback=certified)
        done = ctx.invoke(run, model=new, teacher=shipped, eps=eps, methods=methods, **options)
    finally:
        begin(before)
    answer = done.answers[0]
    return answer["student"], answer["teacher"]


def _decided(files: "tuple[Certificates, Certificates]", rules: "list[Rule]", alpha: float) -> "Gated":
    from certkd.comparison.compare import compare
    from certkd.comparison.gate import decide
    from certkd.report.gate import Gated

    new, shipped = files
    result = compare(shipped, new)
    decisions = decide(rules, _answers(new, shipped, result.methods, rules), alpha)
    facts = {
        "norm": result.norm,
        "eps": result.eps,
        "samples": str(result.samples),
        "methods": "+".join(result.methods),
        "alpha": f"{alpha:g}",
        "new_sha256": str(new.attributes.get("model_sha256", "")),
        "shipped_sha256": str(shipped.attributes.get("model_sha256", "")),
    }
    return Gated((new.path, shipped.path), facts, decisions, result.losses)


def _answers(
    new: "Certificates", shipped: "Certificates", methods: tuple[str, ...], rules: "list[Rule]"
) -> "dict[str, tuple[np.ndarray, np.ndarray]]":
    """Return both networks' answers by metric, for the metrics of the rules.

    Raises:
        InputError: no attack, or no rows that relate the two networks.
    """
    import numpy as np

    from certkd.comparison.compare import outcomes_of
    from certkd.comparison.methods import attacks, relation, same_teacher
    from verifiers.core.status import Status

    ours, theirs = outcomes_of(new, methods), outcomes_of(shipped, methods)
    found = {name: (vars(ours)[name], vars(theirs)[name]) for name in ("certified", "clean", "pgd")}
    found["retention"] = found["certified"]
    wanted = {rule.metric for rule in rules}
    if "pgd" in wanted:
        ran = [sorted(rows.name for rows in attacks(file)) for file in (new, shipped)]
        if np.isnan(ours.pgd).any():
            raise InputError(f"{new.path} has no attack: certify with pgd too")
        if ran[0] != ran[1]:
            said = " and ".join(", ".join(names) or "none" for names in ran)
            raise InputError(f"{new.path} and {shipped.path} have different attacks ({said}): run the same on both")
    if "same-class" in wanted:
        rows = relation(new) if same_teacher(shipped, new) else None
        settings = {} if rows is None else dict(rows.attributes)
        if rows is None or settings.get("property") != "same-class" or settings.get("delta"):
            raise InputError(
                f"same-class needs rows of match in {new.path}, about the network of {shipped.path}: give gate both "
                "networks, or certify the new one with --teacher SHIPPED --methods crown,match"
            )
        proved = rows["status"] == Status.CERTIFIED
        found["same-class"] = proved, proved
    return found
