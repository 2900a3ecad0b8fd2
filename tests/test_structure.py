"""Structural rules of the two packages, read from the source: sizes, and calls that are not allowed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGES = ("certkd", "verifiers")
LINES_OF_A_MODULE, LINES_OF_A_FUNCTION, ARGUMENTS = 400, 60, 6
#: Functions that are named after operators take what the operators take.
OPERATORS = ("verifiers/graph/lowering/", "certkd/networks/onnx/")
#: The only module that may print.
CONSOLE = "certkd/report/console.py"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module of the packages, by path."""
    return {name_of(path): ast.parse(path.read_text()) for path in files(*PACKAGES)}


def calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Calls of plain names (``print(...)``, not ``x.print(...)``) and their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node.lineno


def test_no_module_is_long() -> None:
    long = {name_of(path): line_count(path) for path in files(*PACKAGES)}
    long = {name: lines for name, lines in long.items() if lines > LINES_OF_A_MODULE}
    assert not long, f"modules of more than {LINES_OF_A_MODULE} lines: {long}"


def test_no_function_is_long(trees: dict[str, ast.Module]) -> None:
    long = {
        f"{path}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and node.end_lineno and node.end_lineno - node.lineno >= LINES_OF_A_FUNCTION
    }
    assert not long, f"functions of more than {LINES_OF_A_FUNCTION} lines: {long}"


def arguments(node: Function) -> list[str]:
    """The names that a caller may give."""
    given = node.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def test_no_public_function_takes_many_arguments(trees: dict[str, ast.Module]) -> None:
    many = {
        f"{path}:{node.lineno} {node.name}": len(arguments(node))
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and not node.name.startswith("_") and len(arguments(node)) > ARGUMENTS
    }
    many = {place: count for place, count in many.items() if not place.startswith(OPERATORS)}
    assert not many, f"public functions of more than {ARGUMENTS} arguments: {many}"


def test_there_are_at_least_as_many_lines_of_tests() -> None:
    source, tests = (sum(map(line_count, files(*folders))) for folders in (PACKAGES, ("tests",)))
    assert tests >= source, f"{tests} lines of tests for {source} lines of source"


def test_no_bare_except(trees: dict[str, ast.Module]) -> None:
    bare = [
        f"{path}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare, f"bare excepts: {bare}"


def test_nothing_is_evaluated(trees: dict[str, ast.Module]) -> None:
    found = [f"{path}:{line} {name}" for path, tree in trees.items() for name, line in calls(tree)]
    assert not [call for call in found if call.endswith((" eval", " exec"))]


def test_only_the_console_prints(trees: dict[str, ast.Module]) -> None:
    found = [f"{path}:{line}" for path, tree in trees.items() for name, line in calls(tree) if name == "print"]
    assert not [call for call in found if not call.startswith(f"{CONSOLE}:")], "print through the console"


def test_the_rules_see_what_they_forbid() -> None:
    tree = ast.parse("def f():\n    exec('')\n    model.eval()\n    print(model.print())\n")
    assert sorted(calls(tree)) == [("exec", 2), ("print", 4)]
