"""Parse YAML 1.2 that may come from anybody: its size, depth and repetition are bounded before any value is built."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import Event
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from verifiers.core.errors import InputError, loading, one_line, quoted
from verifiers.core.files import read_text

#: The largest file, in bytes.
LARGEST = 200_000
#: Sections within sections that a configuration may have.
DEEPEST = 50
#: The most values, each alias counted as what it repeats; long texts count as several.
MOST_VALUES = 20_000
#: Characters of a text that count as one value, and the most bits of a whole number.
CHARACTERS, BITS = 100, 1000
TOO_DEEP, TOO_LONG = "it is nested too deeply", f"it holds more than {MOST_VALUES} values, aliases repeated"


def read_configuration(path: Path) -> str:
    """Read a configuration's text.

    Raises:
        InputError: the file is missing, is not a regular file, is too large, or is not UTF-8.
    """
    with loading(path, "a configuration"):
        if not path.exists():
            raise InputError(f"no such configuration: {path}")
        return read_text(path, "a configuration", LARGEST)


def parse(text: str) -> Any:
    """Build the values of a YAML document: no value that holds itself, and no key that is a list or a section.

    Raises:
        InputError: it is not YAML, or larger, deeper or more repetitive than a configuration may be.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor = _Shallow, _Bounded
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise InputError(f"{where}{one_line(ValueError(error.problem or error.context))}") from None
    except Exception as error:  # noqa: BLE001 - the parser has errors of many types for broken documents
        raise InputError(one_line(error)) from None


class _Shallow(Composer):
    """Stops reading where a document becomes too deep or too long, before its end is read."""

    depth = values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if self.depth > DEEPEST or self.values > MOST_VALUES:
            raise _refusal(self.parser.peek_event(), TOO_DEEP if self.depth > DEEPEST else TOO_LONG)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Bounded(SafeConstructor):
    """Builds values after the whole document was measured; what no value can be built from is named with its line."""

    def construct_document(self, node: Node) -> Any:
        _measure(node, {}, set())
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except YAMLError:
            raise
        except Exception as error:
            kind = str(node.tag).rpartition(":")[2]
            raise _refusal(node, f"{quoted(node.value)} is not a value of the type {quoted(kind)}") from error
        if isinstance(value, int) and value.bit_length() > BITS:
            raise _refusal(node, "a number has too many digits")
        return value


def _measure(node: Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """Count the values of a node, aliases repeated, and its depth; each node is visited once."""
    if isinstance(node, ScalarNode):
        return 1 + len(node.value) // CHARACTERS, 0
    if id(node) in above:
        raise _refusal(node, "an alias refers to the section that it is in")
    if id(node) not in known:
        above.add(id(node))
        measured = [_measure(child, known, above) for child in _children(node)]
        above.remove(id(node))
        known[id(node)] = (
            1 + sum(count for count, _ in measured),
            1 + max((depth for _, depth in measured), default=0),
        )
    count, depth = known[id(node)]
    if count > MOST_VALUES:
        raise _refusal(node, TOO_LONG)
    if depth > DEEPEST:
        raise _refusal(node, TOO_DEEP)
    return count, depth


def _children(node: Node) -> list[Node]:
    if isinstance(node, SequenceNode):
        return list(node.value)
    assert isinstance(node, MappingNode)
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or not str(key.tag).endswith((":str", ":merge")):
            raise _refusal(key, "a key must be a word, not a number, a list or a section")
    return [part for pair in node.value for part in pair]


def _refusal(place: Node | Event, words: str) -> ConstructorError:
    return ConstructorError(None, None, words, place.start_mark)
