"""The tables of a study, whole: as LaTeX, Markdown and JSON, and on a terminal of 80 columns."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certkd.comparison.study import Study, study
from certkd.report import paper
from tests.certkd.comparison.test_study import RADII, written_files
from tests.cli import succeeds
from verifiers.results.reader import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the study's own tests."""
    place = tmp_path_factory.mktemp("paper")
    written_files(place)
    return place


@pytest.fixture(scope="module")
def made(folder: Path) -> Study:
    students = {name: read(folder / f"{name}.h5") for name in RADII}
    groups = {"a": [students["a-seed0"], students["a-seed1"]], "b": [students["b"]]}
    return study(("t", read(folder / "t.h5")), groups)


def words(text: str) -> list[str]:
    """The words of a text, however its lines are broken."""
    return text.split()


LATEX = r"""
% needs \usepackage{booktabs}
\begin{table}
  \centering
  \small\setlength{\tabcolsep}{4pt}
  \caption{At eps 0.1 (linf) a certifies 65.0\% of 10 samples, the most of 2 networks, 5.0 points more than
      t (95 \% interval $-$100.0 to +100.0); it keeps 91.7\% of t's certificates.}
  \medskip
  \begin{tabular}{lrrrrr}
    \toprule
    network & seeds & certified & PGD & clean & retention \\
    \midrule
    t & 1 & 60.0 & 100.0 & 100.0 & -- \\
    a & 2 & \textbf{65.0 $\pm$ 21.2} & \textbf{90.0 $\pm$ 14.1} & \textbf{100.0 $\pm$ 0.0} &
        \textbf{91.7 $\pm$ 11.8} \\
    b & 1 & 40.0 & 40.0 & \textbf{100.0} & 0.0 \\
    \bottomrule
  \end{tabular}

  \medskip
  \begin{tabular}{lrrr}
    \toprule
    network & difference to t & 95 \% interval & p (Holm) \\
    \midrule
    a & +5.0 & [$-$100.0, +100.0] & 1 \\
    b & $-$20.0 & [$-$80.0, +40.0] & 1 \\
    \bottomrule
  \end{tabular}

  \smallskip
  {\footnotesize\raggedright In \%. n = 10, linf, eps 0.1, pixels in [0, 1]; crown. Mean and standard
      deviation over seeds, where there are several. Settings: crown cross\_check=2 engine=auto
      time\_limit=3600.0 tolerance=0.005. Arithmetic float32: proofs hold for the network in
      float32, with sums in any order, with or without fused multiply-add. Certified is a lower
      limit: correct and proved. PGD is an upper one: correct and not falsified. Retention: of the
      samples certified for t, the share that is certified here too. Differences are paired:
      McNemar's exact test and a paired bootstrap over samples; Student's t test and interval over
      seeds; Holm's adjustment for 2 comparisons.\par}
\end{table}
"""

MARKDOWN = r"""
At eps 0.1 (linf) a certifies 65.0% of 10 samples, the most of 2 networks, 5.0 points more than t (95 %
    interval -100.0 to +100.0); it keeps 91.7% of t's certificates.

| network | seeds | certified | PGD | clean | retention | difference | 95 % interval | p (Holm) |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| t | 1 | 60.0 | 100.0 | 100.0 | - | - | - | - |
| a | 2 | **65.0 ± 21.2** | **90.0 ± 14.1** | **100.0 ± 0.0** | **91.7 ± 11.8** | +5.0 | \[-100.0,
    +100.0\] | 1 |
| b | 1 | 40.0 | 40.0 | **100.0** | 0.0 | -20.0 | \[-80.0, +40.0\] | 1 |

In %.
n = 10, linf, eps 0.1, pixels in \[0, 1\]; crown. Mean and standard deviation over seeds, where
    there are several.
Settings: crown cross\_check=2 engine=auto time\_limit=3600.0 tolerance=0.005.
Arithmetic float32: proofs hold for the network in float32, with sums in any order, with or
    without fused multiply-add.
Certified is a lower limit: correct and proved. PGD is an upper one: correct and not falsified.
    Retention: of the samples certified for t, the share that is certified here too.
Differences are paired: McNemar's exact test and a paired bootstrap over samples; Student's t test
    and interval over seeds; Holm's adjustment for 2 comparisons.
"""

TERMINAL = """
At eps 0.1 (linf) a certifies 65.0% of 10 samples, the most of 2 networks, 5.0 points more than t (95 %
    interval -100.0 to +100.0); it keeps 91.7% of t's certificates.
linf ball, eps 0.1 (pixels in [0, 1]), 10 samples, in %
┏━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━━━┓
┃ network ┃ seeds ┃ certified   ┃ PGD         ┃ clean       ┃ retention   ┃
┡━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━━━┩
│ t       │     1 │ 60.0        │ 100.0       │ 100.0       │ -           │
│ a       │     2 │ 65.0 ± 21.2 │ 90.0 ± 14.1 │ 100.0 ± 0.0 │ 91.7 ± 11.8 │
│ b       │     1 │ 40.0        │ 40.0        │ 100.0       │ 0.0         │
└─────────┴───────┴─────────────┴─────────────┴─────────────┴─────────────┘
Certified accuracy minus t, percentage points
┏━━━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━━┓
┃ network ┃ difference ┃ 95 % interval    ┃    p ┃ p (Holm) ┃
┡━━━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━━┩
│ a       │       +5.0 │ [-100.0, +100.0] │  0.8 │        1 │
│ b       │      -20.0 │ [-80.0, +40.0]   │ 0.75 │        1 │
└─────────┴────────────┴──────────────────┴──────┴──────────┘
n = 10, linf, eps 0.1, pixels in [0, 1]; crown. Mean and standard deviation over seeds, where
    there are several.
Settings: crown cross_check=2 engine=auto time_limit=3600.0 tolerance=0.005.
Arithmetic float32: proofs hold for the network in float32, with sums in any order, with or
    without fused multiply-add.
Certified is a lower limit: correct and proved. PGD is an upper one: correct and not falsified.
    Retention: of the samples certified for t, the share that is certified here too.
Differences are paired: McNemar's exact test and a paired bootstrap over samples; Student's t test
    and interval over seeds; Holm's adjustment for 2 comparisons.
Radii are as the files state them: no row contradicts another one, and only 'certkd verify' checks
    them on the networks.
"""

#: Without files and the comparisons of each seed; numbers to six decimals.
DOCUMENT = """
{
    "norm": "linf",
    "eps": "0.1",
    "samples": 10,
    "methods": [
        "crown"
    ],
    "settings": {
        "crown": {
            "cross_check": 2,
            "engine": "auto",
            "time_limit": 3600.0,
            "tolerance": 0.005
        }
    },
    "arithmetic": "float32",
    "engines": [],
    "entries": [
        {
            "label": "t",
            "figures": {
                "clean": {
                    "mean": 1.0,
                    "deviation": null
                },
                "pgd": {
                    "mean": 1.0,
                    "deviation": null
                },
                "certified": {
                    "mean": 0.6,
                    "deviation": null
                },
                "mean_radius": {
                    "mean": 0.14,
                    "deviation": null
                }
            },
            "difference": null,
            "p_holm": null
        },
        {
            "label": "a",
            "figures": {
                "clean": {
                    "mean": 1.0,
                    "deviation": 0.0
                },
                "pgd": {
                    "mean": 0.9,
                    "deviation": 0.141421
                },
                "certified": {
                    "mean": 0.65,
                    "deviation": 0.212132
                },
                "mean_radius": {
                    "mean": 0.1025,
                    "deviation": 0.024749
                },
                "retention": {
                    "mean": 0.916667,
                    "deviation": 0.117851
                }
            },
            "difference": {
                "mean": 0.05,
                "low": -1.0,
                "high": 1.0,
                "p": 0.795167
            },
            "p_holm": 1.0
        },
        {
            "label": "b",
            "figures": {
                "clean": {
                    "mean": 1.0,
                    "deviation": null
                },
                "pgd": {
                    "mean": 0.4,
                    "deviation": null
                },
                "certified": {
                    "mean": 0.4,
                    "deviation": null
                },
                "mean_radius": {
                    "mean": 0.048,
                    "deviation": null
                },
                "retention": {
                    "mean": 0.0,
                    "deviation": null
                }
            },
            "difference": {
                "mean": -0.2,
                "low": -0.8,
                "high": 0.4,
                "p": 0.753906
            },
            "p_holm": 1.0
        }
    ],
    "tests": [
        "McNemar's exact test and a paired bootstrap over samples",
        "Student's t test and interval over seeds"
    ]
}
"""


def test_latex(made: Study) -> None:
    assert words(paper.written(made, "latex")) == words(LATEX)


def hostile(made: Study) -> Study:
    """A study whose names LaTeX would read as commands, arguments and comments."""
    labels = ("[t]", "*a_1%", "\\\\b{$&#~^")
    return replace(made, entries=tuple(replace(e, label=n) for e, n in zip(made.entries, labels, strict=True)))


def test_every_line_of_latex_has_all_cells_and_closed_braces(made: Study) -> None:
    text = paper.written(hostile(made), "latex")
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    counts = [len(re.findall(r"(?<!\\)&", row)) for row in rows]
    assert counts == [5] * 4 + [3] * 3, "a name adds or removes a cell"
    for line in text.splitlines()[1:]:
        plain = re.sub(r"\\[{}]", "", line)
        assert plain.count("{") == plain.count("}"), line
        assert not line.strip().startswith(("[", "*")), "an argument of the end of the line before"
    assert re.findall(r"\\(begin|end){(\w+)}", text) == [
        *[("begin", "table"), ("begin", "tabular"), ("end", "tabular")],
        *[("begin", "tabular"), ("end", "tabular"), ("end", "table")],
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a LaTeX on this machine")
def test_latex_compiles_within_the_page(made: Study, tmp_path: Path) -> None:
    for one in (made, hostile(made)):
        head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        (tmp_path / "a.tex").write_text(f"{head}{paper.written(one, 'latex')}\n\\end{{document}}\n", encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "a.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF") and "Overfull" not in done.stdout, done.stdout


def test_markdown(made: Study) -> None:
    found = paper.written(made, "markdown")
    assert words(found) == words(MARKDOWN)
    blank = found.splitlines()
    assert blank[1] == "" and blank[7] == "", "a table needs an empty line before and after"


def test_a_terminal_of_80_columns(folder: Path) -> None:
    found = succeeds("compare", *(folder / f"{name}.h5" for name in ("t", *RADII)))
    assert words(found) == words(TERMINAL)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items() if key not in ("files", "comparisons")}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def test_plain_values(made: Study) -> None:
    assert rounded(made.to_dict()) == json.loads(DOCUMENT)
    assert [len(entry["comparisons"]) for entry in made.to_dict()["entries"]] == [0, 2, 1]
