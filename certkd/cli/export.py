"""``certkd export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.networks import loader, named_data, network, teacher_of
from certkd.cli.options import (
    EpsilonType,
    Value,
    Whole,
    data_places,
    network_options,
    overwrite_option,
    teacher_options,
)
from certkd.cli.output import Command
from certkd.cli.places import check_new, new_file
from certkd.exchange.instance_table import LIST
from certkd.files import NETWORKS
from verifiers.core.errors import InputError, did_you_mean, loading, quoted
from verifiers.core.quantities import Epsilon, Norm, beyond_images
from verifiers.core.table import counted

if TYPE_CHECKING:
    from certkd.exchange.instances import Properties
    from certkd.networks.checkpoint import Checkpoint
    from verifiers.core.relation import Relation


@click.command(cls=Command)
@click.argument("file", metavar="[FILE.h5|NETWORK]", required=False)
@click.option("--model", metavar="NETWORK", help="Checkpoint, .onnx, or source:name.")
@click.option("--teacher", metavar="NETWORK", help="With --eps: properties of this student and its teacher.")
@click.option("--out", required=True, metavar="PLACE", help="A folder; or, for rows, a .csv, .json or .npz file.")
@click.option("--eps", type=EpsilonType(), help="Write properties for linf balls of this radius too, like 2/255.")
@click.option("--data", metavar="NAME", help="Data set.  [default: the checkpoint's own]")
@click.option("--split", help="train, validation or test.  [default: test]")
@click.option("--limit", type=Whole(1), help="Only the first N samples.")
@click.option("--indices", metavar="I,J-K,...", help="Only these samples of the split, like 3,17,40-99.")
@click.option("--indices-file", metavar="FILE", help="Only the samples that a file lists, an index or range a line.")
@click.option("--timeout", type=Whole(1), help="Seconds per property.  [default: 300]")
@click.option("--vnnlib", metavar="VERSION", help="Version of VNN-LIB: 1.0 or 2.0.  [default: 1.0; 2.0 for a pair]")
@click.option("--property", metavar="NAME", help="Of a pair: as in 'certkd match'.  [default: same-class]")
@click.option("--tolerance", type=Value(), metavar="T", help="Of close and not-worse, in logits.  [default: 0]")
@click.option("--delta", type=Value(), metavar="D", help="Of same-class: where the teacher is surer.  [default: 0]")
@network_options
@teacher_options
@data_places
@overwrite_option
def export(file: str | None, model: str | None, out: str, eps: Epsilon | None, **options: Any) -> int:
    """Export networks, properties and certificates for other tools.

    With NETWORK (or --model NETWORK), --out is a folder. NAME.onnx takes any number of images in [0, 1]: normalisation
    is inside. --eps adds a VNN-LIB property for each sample that is classified correctly, and instances.csv, which
    lists them as VNN-COMP does. With --teacher, each property is about both networks, in VNN-LIB 2.0, and there is one
    for every sample: 'certkd match' decides the same.

    With FILE.h5, rows go to a .csv or .json file and counterexamples to an .npz file. With the network too
    (--model), counterexamples go to a folder, each in a file of VNN-COMP's format, after they have been run again.
    """
    if file is not None and model is None and _is_network(file):
        file, model = None, file
    if file is not None:
        _refuse({"eps": eps, **options}, _ABOUT_PROPERTIES, "is about properties: a certificate file has rows; drop it")
        if model is None:
            _refuse(options, _ABOUT_NETWORKS, "is about a network: add --model, or drop it")
        return _rows(file, model, out, options)
    if model is None:
        raise InputError("nothing to export: give --model NETWORK, or a certificate file: certkd export FILE.h5")
    if options["vnnlib"] not in (None, "1.0", "2.0"):
        raise InputError(f"--vnnlib {options['vnnlib']} is not a version of VNN-LIB that is written: 1.0 or 2.0")
    if eps is None:
        _refuse(options, _ABOUT_PROPERTIES, "is about properties: add --eps")
    beyond = None if eps is None else beyond_images(eps, Norm.LINF)
    if beyond is not None:
        raise InputError(f"--eps: {beyond}")
    if Path(out).suffix:
        raise InputError(f"a network is exported to a folder: --out {out} ends in {Path(out).suffix} as a file would")
    if options["teacher"] is None:
        _refuse(options, _ABOUT_PAIRS, "is about a student and its teacher: add --teacher")
        return _network(model, out, eps, options)
    return _pair(model, out, eps, options)


_ABOUT_PAIRS = ("property", "tolerance", "delta", "teacher_arch")
_ABOUT_PROPERTIES = ("eps", "limit", "indices", "indices_file", "split", "timeout", "vnnlib", "teacher", *_ABOUT_PAIRS)
_ABOUT_NETWORKS = tuple("arch weights_key mean std layout output data data_root image_size download".split())


def _is_network(name: str) -> bool:
    """Tell whether a bare name is a network's, by its suffix or its source."""
    return name.endswith(NETWORKS) or ":" in name


def _refuse(options: dict[str, Any], names: tuple[str, ...], why: str) -> None:
    """Refuse an option that would have no effect."""
    given = next((name for name in names if options.get(name) not in (None, False)), None)
    if given is not None:
        value = "" if options[given] is True else f" {options[given]}"
        raise InputError(f"--{given.replace('_', '-')}{value} {why}")


def _rows(file: str, model: str | None, out: str, options: dict[str, Any]) -> int:
    from certkd.exchange.rows import WRITERS, export_rows, is_folder
    from certkd.report.console import display
    from verifiers.results.reader import KIND

    folder = is_folder(out)
    if model is not None and not folder:
        raise InputError(f"--model is for a folder of counterexamples, --out {out} is a file of rows: drop one of them")
    if model is None and folder and not Path(file).is_file():
        what = "is a folder" if Path(file).is_dir() else "is not there"
        raise InputError(f"{file} {what}: give a network, like student.pt, or a certificate file")
    if model is None and folder:
        raise InputError(
            f"{out} would be a folder of counterexamples with logits, which needs the network (--model); rows go to a "
            "name that ends in .csv, .json or .npz"
        )
    if model is not None:
        display(*_counterexamples(file, model, out, options))
        return 0
    place = new_file(out, tuple(WRITERS), overwrite=options["overwrite"])
    with loading(file, KIND):
        written = export_rows(Path(file), place)
    display(*written)
    return 0


def _counterexamples(file: str, model: str, out: str, options: dict[str, Any]) -> list[str]:
    from certkd.exchange.counterexamples import export_counterexamples

    options["kinds"] = {model.endswith(".onnx")}
    return export_counterexamples(Path(file), Path(out), network(model, options, loader()).model)


def _pair(model: str, out: str, eps: Epsilon | None, options: dict[str, Any]) -> int:
    """Write both networks, and a property of both for each sample."""
    from certkd.exchange.pair_vnnlib import PairProperties, write_pair_instances
    from certkd.report.console import display

    teacher, relation = options["teacher"], _relation(options)
    if eps is None:
        raise InputError(f"--teacher {teacher} is about properties: add --eps")
    if options["vnnlib"] == "1.0":
        raise InputError("--vnnlib 1.0 knows one network: drop it, a pair is written in version 2.0")
    options["kinds"], load = {name.endswith(".onnx") for name in (model, teacher)}, loader()
    student, reference = network(model, options, load), teacher_of(teacher, options, load)
    for what in ("shape", "classes"):
        ours, theirs = (getattr(known.model.spec, what) for known in (student, reference))
        if ours != theirs:
            raise InputError(f"{model} and its teacher differ in {what}: {ours} and {theirs}")
    files = [_file(model, out), _file(teacher, out)]
    if files[0] == files[1]:
        files[1] = files[1].with_name(f"{files[1].stem}-teacher.onnx")
    _check_new((*files, Path(out) / LIST), options)
    samples, name = _samples(student, options, load)
    for known, file in zip((student, reference), files, strict=True):
        _written(known, file)
    wanted = PairProperties((files[0].name, files[1].name), relation, name, eps, options["timeout"] or 300)
    made = write_pair_instances(student.model, reference.model, samples, Path(out), wanted)
    count = counted(len(made), "property", "properties")
    display(f"{Path(out) / LIST}: {count}, {relation.kind}, eps {eps}")
    return 0


def _relation(options: dict[str, Any]) -> "Relation":
    from verifiers.core.relation import Property, Relation

    given = options["property"] or Property.SAME_CLASS.value
    if given not in list(Property):
        raise InputError(f"unknown property {quoted(given)}.{did_you_mean(given, list(map(str, Property)))}")
    return Relation(Property(given), options["tolerance"] or 0.0, options["delta"] or 0.0)


def _file(model: str, out: str) -> Path:
    """Name the ONNX file of a network.

    Raises:
        InputError: it is the network's own.
    """
    from certkd.networks.resolve import is_path

    file = Path(out) / f"{Path(model).stem if is_path(model) else model.replace(':', '-')}.onnx"
    if is_path(model) and file.exists() and file.samefile(model):
        raise InputError(f"--out {out} would overwrite {model}: give another folder")
    return file


def _check_new(files: tuple[Path, ...], options: dict[str, Any]) -> None:
    for file in files:
        check_new(file, overwrite=options["overwrite"])


def _written(known: "Checkpoint", file: Path) -> None:
    """Write a network, and say so."""
    from certkd.networks.onnx.export import export as export_network
    from certkd.report.console import display, stderr

    refusal = export_network(known.model, file)
    display(f"{file}: images {known.model.spec.shape} in [0, 1], {known.model.spec.classes} logits")
    if refusal is not None:
        stderr().print(f"warning: certkd itself does not read it back: {refusal}")


def _network(model: str, out: str, eps: Epsilon | None, options: dict[str, Any]) -> int:
    from certkd.exchange.instances import Properties

    options["kinds"], load = {model.endswith(".onnx")}, loader()
    file = _file(model, out)
    _check_new((file, *([] if eps is None else [file.with_name(LIST)])), options)
    known = network(model, options, load)
    properties = None if eps is None else _samples(known, options, load)
    _written(known, file)
    if eps is not None and properties is not None:
        timeout, version = options["timeout"] or 300, options["vnnlib"] or "1.0"
        wanted = Properties(file.name, properties[1], eps, timeout, version)
        _write_properties(known, properties[0], file, wanted)
    return 0


def _samples(known: "Checkpoint", options: dict[str, Any], load: Any) -> tuple[Any, str]:
    """Return the chosen samples, and a name for their data set and split."""
    from certkd.certification import chosen_samples
    from certkd.data.selection import chosen
    from certkd.networks import resolve as networks

    config = networks.data_of(known, named_data(options))
    selection = chosen(options["indices"], options["indices_file"], options["limit"])
    split = options["split"] or "test"
    return chosen_samples(known, load(config), split, selection), f"{Path(config.name).stem}_{split}"


def _write_properties(known: "Checkpoint", samples: Any, file: Path, wanted: "Properties") -> None:
    from certkd.exchange.instances import write_instances
    from certkd.report.console import display, stderr

    made = write_instances(known.model, samples, file.parent, wanted)
    count = counted(len(made.properties), "property", "properties")
    display(f"{file.parent / LIST}: {count}, eps {wanted.eps}")
    if made.misclassified:
        few = ", ".join(map(str, made.misclassified[:10])) + (", ..." if len(made.misclassified) > 10 else "")
        stderr().print(
            f"left out, misclassified: {len(made.misclassified)} of {counted(len(samples), 'sample')} ({few})"
        )
