"""``certkd solve``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import Number, Whole, overwrite_option, workers_options
from certkd.cli.output import Command
from certkd.cli.places import check_new
from verifiers.core.errors import InputError
from verifiers.core.table import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certkd.exchange.instance_table import Instance, Row

#: Seconds for a property whose limit nobody states.
TIMEOUT = 300.0
RESULTS = "results.csv"


@click.command(cls=Command)
@click.argument("files", metavar="LIST.csv|NET.onnx... PROPERTY.vnnlib", nargs=-1, required=True)
@click.option("--timeout", type=Number(), help="Seconds per property.  [default: the list's, or 300]")
@click.option("--out", metavar="FOLDER", help="Results and counterexamples.  [default: next to the property or list]")
@click.option("--against", metavar="RESULTS.csv", help="Compare with another tool's results; exit 1 if they exclude.")
@click.option("--replay", metavar="FILE", help="Only run this counterexample of the property again.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--arithmetic",
    default="float32",
    show_default=True,
    help="float32 proves the network as it runs, with its rounding; real the network over the real numbers.",
)
@workers_options
@overwrite_option
def solve(files: tuple[str, ...], **options: Any) -> int:
    """Solve VNN-LIB properties of ONNX networks.

    A property is the unsafe set, as in VNN-COMP: sat means that an input of the box has outputs in it, unsat that none
    has. The list is VNN-COMP's: rows onnx,vnnlib,timeout with paths relative to the list. Files may be packed by gzip.

    A property of VNN-LIB 2.0 may be about two networks: give their files in the order of its declarations, or as
    "[('f', 'a.onnx'), ('g', 'b.onnx')]", also in a list. Entries of their inputs that it sets equal are one.

    unsat is proved for every float32 machine. sat comes with a counterexample file, whose point satisfies the property
    exactly, both here and in onnxruntime. All else is unknown, with the reason, or timeout.
    """
    from certkd.exchange.instance_table import read_results

    *networks, last = files
    question = last if networks else None
    instances = _instances(networks or [last], question, options["timeout"])
    against = None if options["against"] is None else read_results(Path(options["against"]))
    if options["replay"] is not None:
        return _replay(instances, question, Path(options["replay"]))
    folder = Path(options["out"]) if options["out"] else _folder(Path(last))
    check_new(folder / RESULTS, overwrite=options["overwrite"])
    rows = _solve(instances, folder, options, alone=question is not None)
    return _report(rows, folder, against, alone=question is not None)


def _instances(networks: "Sequence[str]", question: str | None, timeout: float | None) -> "list[Instance]":
    from certkd.exchange.instance_table import Instance, listed_networks, packed, read_instances

    if timeout is not None and timeout <= 0:
        raise InputError(f"--timeout {timeout:g} is not a positive number of seconds")
    if question is None or ((len(networks) > 1 or networks[0].endswith(".onnx")) and question.endswith(".onnx")):
        named = [*networks, *([] if question is None else [question])]
        if ".onnx" in Path(named[0]).suffixes or named[0].startswith("["):
            files = " ".join(named)
            raise InputError(f"which property of {files}? Give a file: certkd solve {files} PROPERTY.vnnlib")
        if ".vnnlib" in Path(named[0]).suffixes:
            raise InputError(f"which network is {named[0]} about? Give it first: certkd solve NET.onnx {named[0]}")
        listed = read_instances(Path(named[0]))
        if timeout is None:
            return listed
        return [Instance(each.network, each.question, timeout, each.folder) for each in listed]
    text = networks[0] if len(networks) == 1 else repr(list(networks))
    wanted = [(packed(Path(file)), file, "network") for _, file in listed_networks(text)]
    for path, file, what in (*wanted, (packed(Path(question)), question, "property")):
        if not path.is_file():
            raise InputError(f"no such {what}: {file}")
    return [Instance(text, question, timeout or TIMEOUT, Path())]


def _folder(path: Path) -> Path:
    """Name the folder of results next to a file."""
    return path.with_name(f"{path.name.removesuffix('.gz').rsplit('.', 1)[0]}-solved")


def _replay(instances: "Sequence[Instance]", question: str | None, path: Path) -> int:
    from certkd.exchange.solving import replay
    from certkd.report.console import display

    if question is None:
        raise InputError(f"--replay {path} needs its network and property: certkd solve NET.onnx PROPERTY.vnnlib")
    found = replay(instances[0], path)
    display(*found.lines, f"{path} {'holds' if found.holds else 'does not hold'}")
    return 0 if found.holds else 1


def _solve(instances: "Sequence[Instance]", folder: Path, options: dict[str, Any], *, alone: bool) -> "list[Row]":
    from certkd.exchange.instance_table import write_results
    from certkd.exchange.parallel import solve_shared
    from certkd.exchange.solving import Settings, solve, solve_all
    from certkd.files import make_folder
    from certkd.report.console import current, stderr
    from verifiers.core.quantities import parse_arithmetic
    from verifiers.runtime.staff import Staff

    settings = Settings(folder, options["seed"], parse_arithmetic(options["arithmetic"]))
    make_folder(folder)

    def done(rows: "Sequence[Row]", row: "Row") -> None:
        write_results(folder / RESULTS, rows)
        if alone or current().quiet:
            return
        one, reason = row.instance, f": {row.reason}" if row.reason else ""
        count = f"{len(rows)}/{len(instances)}"
        stderr().print(f"{count} {row.result} {row.time:.1f} s {one.network} {one.question}{reason}")

    staff = Staff(min(options["workers"], len(instances)), options["cluster"])
    if not staff.alone:
        return solve_shared(instances, settings, staff, done)
    rows: list[Row] = []
    for row in [solve(instances[0], settings)] if alone else solve_all(instances, settings):
        rows.append(row)
        done(rows, row)
    return rows


def _report(rows: "list[Row]", folder: Path, against: dict[tuple[str, str], str] | None, *, alone: bool) -> int:
    from certkd.exchange.instance_table import compare
    from certkd.report.console import display, record, stderr

    listed = [
        {"network": r.instance.network, "property": r.instance.question, "result": r.result, "seconds": r.time}
        for r in rows
    ]
    record(instances=listed)
    counts = {word: sum(row.result == word for row in rows) for word in ("sat", "unsat", "unknown", "timeout")}
    if alone:
        row = rows[0]
        display(row.result, *([row.reason] if row.reason else []))
        display(*([f"counterexample written to {folder / row.counterexample}"] if row.counterexample else []))
    else:
        said = ", ".join(f"{count} {word}" for word, count in counts.items())
        display(f"{counted(len(rows), 'instance')} in {sum(row.time for row in rows):.1f} s: {said}")
        display(f"written to {folder / RESULTS}")
    if against is None:
        return 0
    found = compare(rows, against)
    there = "instance is" if len(rows) == 1 else "instances are"
    display(
        f"{found.both} of {len(rows)} {there} in the other table: {found.same} decided alike, {found.ours} by certkd "
        f"alone, {found.theirs} by the other tool alone, {counted(len(found.contradictions), 'contradiction')}"
    )
    for line in found.contradictions:
        stderr().print(f"contradiction: {line}", soft_wrap=True)
    return 1 if found.contradictions else 0
