"""One self-contained HTML page: verdict, radii, samples, counterexamples, transfer, protocol."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from certkd.comparison.compare import Comparison, compare, radii
from certkd.comparison.study import study
from certkd.files import write_whole
from certkd.report import charts, pictures, stored, tables
from verifiers.core.errors import printable
from verifiers.core.table import Facts, Part, counted, percent
from verifiers.results.rows import Certificates

#: The numbers of outcomes, as the page's script knows them.
MISCLASSIFIED, CERTIFIED, FALSIFIED, OPEN = range(4)
#: The most scatter plots, and the most samples that a list of disagreements names.
SCATTERS, LISTED = 4, 50
#: The pictures of a point at which two networks disagree.
PICTURES = ("image", "point", "difference")


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: its heading.
        networks: certificates by name; the reference first.
        images: by row, of channels, height and width; empty where they are not known.
        remark: why there are no images, or what to know about them.
    """

    title: str
    networks: Mapping[str, Certificates]
    images: Mapping[int, np.ndarray] = field(default_factory=dict)
    remark: str = ""

    @property
    def reference(self) -> Certificates:
        """The network that the others are compared with."""
        return next(iter(self.networks.values()))


def write(page: Page, path: Path) -> None:
    """Write a page.

    Raises:
        InputError: the files cannot be compared, or the page cannot be written.
    """
    text = render(page)
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def render(page: Page) -> str:
    """Build a page as text."""
    names = list(page.networks)
    compared = {name: compare(page.reference, page.networks[name]) for name in names[1:]}
    used = next(iter(compared.values())).methods if compared else "best"
    values = {name: radii(one, used) for name, one in page.networks.items()}
    plots = _plots(page, values)
    parts = _overview(page)
    verdict = str(parts[0])
    content = {
        "title": text(page.title),
        "verdict": text(verdict),
        "networks": "".join(map(element, parts[1:])),
        "figures": "".join(
            f'<div><div class="plot" id="{name}" role="img" aria-label="{text(words)}"></div></div>'
            for name, (words, _) in plots.items()
        ),
        "pictures": text(page.remark),
        "sections": _sections(page, compared),
        "footer": text(
            "Written by certkd. Radii are as the files state them; 'certkd verify' checks them on the networks."
        ),
        "data": script(_data(page, values)),
        "plots": script(json.loads(charts.documents({name: made for name, (_, made) in plots.items()}))),
        "bokeh": charts.library(),
    }
    folder = files("certkd.report") / "template"
    whole = (folder / "page.html").read_text(encoding="utf-8")
    content |= {kind: (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    pieces = whole.split("@@")
    return "".join(content[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def text(words: str) -> str:
    """Escape a text for HTML, its control characters too."""
    return html.escape(printable(words))


def script(value: Any) -> str:
    """Write JSON that no text inside can end: a page's script reads it."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def element(part: Part) -> str:
    """Write a table, facts or a sentence as HTML."""
    if isinstance(part, str):
        return f'<p class="note">{text(part)}</p>'
    if isinstance(part, Facts):
        names = (f"<dt>{text(name)}</dt>" if name else "" for name, _ in part.rows)
        values = (f"<dd>{text(value)}</dd>" for _, value in part.rows)
        return f"<dl>{''.join(name + value for name, value in zip(names, values, strict=True))}</dl>"
    numbers = [all(_is_number(row[i]) for row in part.rows) for i in range(len(part.columns))]
    return _table(part.title, part.columns, [f"<tr>{''.join(map(_cell, row))}</tr>" for row in part.rows], numbers)


def _table(title: str, columns: Sequence[str], rows: Sequence[str], numbers: Sequence[bool] = ()) -> str:
    kinds = [*numbers, *[False] * (len(columns) - len(numbers))]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{text(name)}</th>'
        for name, number in zip(columns, kinds, strict=True)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h3>{text(title)}</h3><div class="wide">{table}</div>'


def _cell(value: str) -> str:
    return f"<td{' class=number' if _is_number(value) else ''}>{text(value)}</td>"


def _is_number(value: str) -> bool:
    """Return whether a cell begins like a number or an interval."""
    return value[:1].isdigit() or value[:1] in ("-", "+", "<", ">", "[")


def _overview(page: Page) -> list[Part]:
    """The answer, and the tables of all networks."""
    (label, reference), *others = page.networks.items()
    if others:
        return tables.study(study((label, reference), {name: [one] for name, one in others}))
    found = tables.contents(reference)
    values = radii(reference)
    sure = int((values >= reference.eps).sum())
    answer = (
        f"At eps {reference.eps_text} ({reference.norm}) {label} is certified on {sure} of "
        f"{counted(len(values), 'sample')} ({percent(sure / len(values))})."
    )
    return [answer, *found, *tables.summaries(reference)]


def _plots(page: Page, values: Mapping[str, np.ndarray]) -> dict[str, tuple[str, Any]]:
    """The figures by the id of their element, with a description."""
    reference = page.reference
    words = f"Certified accuracy over the radius, {reference.norm}, {counted(len(next(iter(reference))), 'sample')}"
    made = {"curves": (words, charts.curves(values, reference.norm, reference.eps))}
    (label, first), *others = values.items()
    index = next(iter(reference))["index"].tolist()
    for number, (name, radius) in enumerate(others[:SCATTERS]):
        drawn = charts.scatter(first, radius, index, (label, name), reference.norm, reference.eps)
        made[f"scatter{number}"] = (f"Radius of each sample, {name} against {label}", drawn)
    return made


def outcome(certificates: Certificates, radius: np.ndarray) -> np.ndarray:
    """Number each sample's outcome: misclassified, certified at eps, falsified, or open."""
    wrong = next(iter(certificates))["correct"] != 1
    answers = [wrong, radius >= certificates.eps, stored.falsified(certificates)]
    return np.select(answers, [MISCLASSIFIED, CERTIFIED, FALSIFIED], OPEN)


def _data(page: Page, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the page's script shows: the samples, their outcomes, and pictures of those that matter most."""
    rows = next(iter(page.reference))
    networks = [
        {"name": printable(name), "radius": _short(values[name]), "outcome": outcome(one, values[name]).tolist()}
        for name, one in page.networks.items()
    ]
    sure = [np.array(one["outcome"]) == CERTIFIED for one in networks]
    changed = np.any([one != sure[0] for one in sure[1:]] or [np.zeros(len(rows), bool)], axis=0)
    broken = np.any([np.array(one["outcome"]) == FALSIFIED for one in networks], axis=0)
    order = np.argsort(-(2 * changed.astype(int) + broken), kind="stable").tolist()
    shown = [row for row in order if broken[row]][: pictures.COUNTEREXAMPLES]
    return {
        "index": rows["index"].tolist(),
        "label": rows["label"].tolist(),
        "networks": networks,
        "attacks": stored.counterexamples(page.networks, shown, stored.Album(page.images)),
        "pictures": pictures.thumbnails(page.images, order),
    }


def _short(radius: np.ndarray) -> list[float]:
    """Write radii with four digits, rounded down: no radius is shown larger than it is."""
    exponent = np.floor(np.log10(np.where(radius > 0, radius, 1.0)))
    unit = 10.0 ** (exponent - 3)
    return [float(f"{value:.6g}") for value in np.floor(radius / unit * (1 + 1e-12)) * unit]


def _sections(page: Page, compared: Mapping[str, Comparison]) -> str:
    """What carries over and what blocks, disagreements, protocol, and how to verify again."""
    sections: list[tuple[str, list[str]]] = []
    album = stored.Album(page.images)
    for name, result in compared.items():
        parts: list[str] = [element(tables.curve(result, next(iter(page.networks)), name))]
        if result.carried_over is not None:
            parts += [f"<p>{text(line)}</p>" for line in tables.kept(result.carried_over)]
        if result.match is not None:
            parts += [f"<p>{text(result.match.sentence)}</p>", _disagreements(page.networks[name], album)]
        sections.append((f"{name} against {next(iter(page.networks))}", parts))
    protocol = []
    for name, certificates in page.networks.items():
        file = ("file", Path(certificates.path).name)
        protocol.append(f"<h3>{text(name)}</h3>{element(Facts([file, *tables.facts(certificates).rows]))}")
    again = "".join(
        f"<pre>certkd verify {text(Path(one.path).name)} --model NETWORK</pre>" for one in page.networks.values()
    )
    sections.append(("Protocol", protocol))
    sections.append(
        ("How to verify again", ["<p>With the network of each file, on the machine that has it:</p>", again])
    )
    return "".join(f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>" for title, parts in sections)


def _disagreements(certificates: Certificates, album: stored.Album) -> str:
    """List the samples at which a stored point separates the two networks, with the images where they are known."""
    listed = stored.disagreements(certificates, LISTED, album)
    if not listed:
        return ""
    kinds = [kind for kind in PICTURES if any(kind in made for _, made in listed)]
    head = ["sample", *kinds, "student's class", "teacher's", "violation, logits"]
    lines = []
    for (index, *facts), made in listed:
        images = "".join(f"<td>{_image(made.get(kind), f'{kind} of sample {index}')}</td>" for kind in kinds)
        lines.append(f"<tr>{_cell(index)}{images}{''.join(map(_cell, facts))}</tr>")
    return _table("Points at which the networks disagree (the difference is amplified; grey is no change)", head, lines)


def _image(source: str | None, words: str) -> str:
    return f'<img class="thumb" src="{source}" alt="{text(words)}">' if source else ""
