"""Lists of instances and tables of results, ours and those of other tools."""

import csv
from pathlib import Path

import pytest

from certkd.exchange.instance_table import (
    HEADER,
    Instance,
    Row,
    bare,
    compare,
    listed_networks,
    read_instances,
    read_results,
    write_results,
)
from verifiers.core.errors import InputError


def listed(folder: Path, text: str) -> Path:
    for name in ("a.onnx", "b.onnx.gz", "p.vnnlib", "q.vnnlib.gz"):
        (folder / name).write_text("x")
    path = folder / "instances.csv"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_list_and_may_be_packed(tmp_path: Path) -> None:
    found = read_instances(listed(tmp_path, "a.onnx,p.vnnlib,10\n\n ./b.onnx , q.vnnlib ,2.5\n"))
    assert [each.timeout for each in found] == [10.0, 2.5]
    assert [[path.name for _, path in each.networks] for each in found] == [["a.onnx"], ["b.onnx.gz"]]
    assert [each.property_path.name for each in found] == ["p.vnnlib", "q.vnnlib.gz"]
    assert all(path.parent == tmp_path for each in found for _, path in [*each.networks, ("", each.property_path)])
    assert len(read_instances(listed(tmp_path, "onnx,vnnlib,timeout\na.onnx,p.vnnlib,10\n"))) == 1, "a header"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.onnx,p.vnnlib\n", "line 1 must be onnx,vnnlib,timeout"),
        ("a.onnx,p.vnnlib,soon\n", "'soon' is not a positive number"),
        ("a.onnx,p.vnnlib,0\n", "'0' is not a positive number"),
        ("a.onnx,p.vnnlib,1\na.onnx,r.vnnlib,1\n", "line 2: no such file"),
        ('a.onnx,"p.vnnlib,1\n', "not CSV"),
        ("\n\n", "empty"),
        ("onnx,vnnlib,timeout\n", "lists no instance"),
    ],
)
def test_lists_with_mistakes(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_instances(listed(tmp_path, text))
    assert said in str(caught.value), str(caught.value)


def rows() -> list[Row]:
    words = {"p": "sat", "q": "unsat", "r": "unknown", "s": "timeout", "t": "unsat"}
    reason = 'a "reason", quoted'
    return [
        Row(Instance("nets/a.onnx", f"{name}.vnnlib", 10.0, Path()), word, 1.25, "", reason if name == "r" else "")
        for name, word in words.items()
    ]


def test_our_table_is_a_table_that_is_read(tmp_path: Path) -> None:
    write_results(tmp_path / "r.csv", rows())
    with open(tmp_path / "r.csv", newline="") as file:
        found = list(csv.reader(file))
    assert tuple(found[0]) == HEADER and found[3][-1] == 'a "reason", quoted' and found[1][4] == "1.250"
    assert read_results(tmp_path / "r.csv") == {
        ("a", "p"): "sat",
        ("a", "q"): "unsat",
        ("a", "r"): "unknown",
        ("a", "s"): "timeout",
        ("a", "t"): "unsat",
    }


def test_other_tools_are_compared_instance_by_instance(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "acas,./x/a.onnx,./y/p.vnnlib.gz,0.1,violated,3\n"
        "acas,a.onnx.gz,q.vnnlib,0.1,sat,3\n"
        "acas,a.onnx,r.vnnlib,0.1,holds,3\n"
        "acas,a.onnx,s.vnnlib,0.1,error,3\n"
        "acas,b.onnx,t.vnnlib,0.1,holds,3\n"
    )
    found = compare(rows(), read_results(tmp_path / "t.csv"))
    assert (found.both, found.same, found.ours, found.theirs) == (4, 1, 0, 1)
    assert found.contradictions == ("a with q: certkd says unsat, the other tool sat",)


def test_a_header_names_the_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ONNX,run_time,vnnlib,verdict\na.onnx,1,p.vnnlib,timed-out\n")
    assert read_results(tmp_path / "t.csv") == {("a", "p"): "timeout"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.onnx,p.vnnlib,sat\n", "must be benchmark,onnx,vnnlib"),
        ("x,a.onnx,p.vnnlib,0,sat,1\nx,a.onnx,p.vnnlib,0,unsat,1\n", "another result"),
        ("onnx,vnnlib,result\n", "lists no result"),
    ],
)
def test_tables_with_mistakes(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_results(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("a.onnx", [("", "a.onnx")]),
        ("[('f', 'a.onnx'), ('g', 'b/c.onnx.gz')]", [("f", "a.onnx"), ("g", "b/c.onnx.gz")]),
        ('[("f", "a.onnx")]', [("f", "a.onnx")]),
        ("['a.onnx', 'b.onnx']", [("", "a.onnx"), ("", "b.onnx")]),
    ],
)
def test_several_networks(cell: str, found: list) -> None:
    assert listed_networks(cell) == found
    assert bare(cell) == "_".join(bare(file) for _, file in found)


@pytest.mark.parametrize(
    "cell", ["[", "[]", "[1]", "[('f',)]", "[('f', 1)]", "[('f', '')]", "[open('x')]", "[" * 5000, f"['{'x' * 20000}']"]
)
def test_what_is_no_list_of_networks(cell: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must look like") as raised:
        listed_networks(cell)
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)
    assert bare(cell), "it has a name for comparisons all the same"
