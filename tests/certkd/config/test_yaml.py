"""YAML from strangers: bounded in size, depth and repetition; other files stay closed."""

import os
from pathlib import Path

import pytest

from certkd.config.reading import read, value_of
from certkd.config.settings import TrainJob
from certkd.config.yaml import LARGEST, MOST_VALUES, parse
from verifiers.core.errors import LONGEST_MESSAGE, InputError

GOOD = """out: out
data: {name: digits}
model: {name: certkd:mlp, options: {hidden: [8]}}
epochs: 1
objective: {kind: standard}
"""


def bomb(depth: int) -> str:
    """Nine to the power of ``depth`` words, by aliases."""
    layers = [f"&a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return f"[&a0 [x,x,x,x,x,x,x,x,x], {', '.join(layers)}]"


MERGE = "x0: &x0 {a: 1}\n" + "".join(f"x{i}: &x{i}\n  <<: [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 25))
HOSTILE = {
    "aliases": (GOOD.replace("epochs: 1", f"epochs: {bomb(7)}"), f"more than {MOST_VALUES} values"),
    "more-aliases": (GOOD.replace("[8]", bomb(40)), f"more than {MOST_VALUES} values"),
    "merges": (MERGE + GOOD, f"more than {MOST_VALUES} values"),
    "long-aliases": (f"a: &a {'x' * 50_000}\nb: [{','.join(['*a'] * 1000)}]\n{GOOD}", "values, aliases repeated"),
    "values": (f"a: [{'1,' * 30_000}]\n{GOOD}", "values, aliases repeated"),
    "large": (GOOD + "#" * LARGEST, "larger than a configuration may be"),
    "itself": (GOOD.replace("[8]", "&a [*a]"), "refers to the section that it is in"),
    "in-its-key": (GOOD.replace("[8]", "&a {*a : 1}"), "is not YAML"),
    "brackets": (GOOD.replace("[8]", "[" * 3000 + "]" * 3000), "nested too deeply"),
    "braces": (GOOD.replace("[8]", "{a: " * 60 + "1" + "}" * 60), "nested too deeply"),
    "blocks": ("".join(f"{' ' * i}a{i}:\n" for i in range(500)), "nested too deeply"),
    "date": (GOOD.replace("epochs: 1", "epochs: 2001-99-99"), "line 4: '2001-99-99' is not a value of the type"),
    "int": (GOOD.replace("epochs: 1", "epochs: !!int abc"), "'abc' is not a value of the type 'int'"),
    "float": (GOOD.replace("epochs: 1", "epochs: !!float abc"), "'abc' is not a value of the type 'float'"),
    "bool": (GOOD.replace("epochs: 1", "epochs: !!bool maybe"), "'maybe' is not a value of the type 'bool'"),
    "timestamp": (GOOD.replace("epochs: 1", "epochs: !!timestamp abc"), "failed to construct timestamp"),
    "binary": (GOOD.replace("epochs: 1", "epochs: !!binary \udcff"), "is not"),
    "digits": (GOOD.replace("epochs: 1", "epochs: " + "1" * 5000), "is not a value of the type 'int'"),
    "bits": (GOOD.replace("epochs: 1", "epochs: 0x" + "f" * 5000), "a number has too many digits"),
    "python": (GOOD.replace("epochs: 1", "epochs: !!python/name:os.system"), "is not YAML"),
    "own-tag": (GOOD.replace("epochs: 1", "epochs: !run x"), "is not YAML"),
    "set": (GOOD.replace("[8]", "!!set {a, b}"), "hidden"),
    "number-as-key": (GOOD.replace("standard", "standard, 0: 1"), "line 5: a key must be a word, not a number"),
    "control": (GOOD + "\x07", "is not YAML"),
    "escape": (GOOD.replace("standard", '"\\e[2J"'), r"'\x1b[2J'"),
    "right-to-left": (GOOD + 'k\u202e: "\\u202e"\n', r"\u202e"),
    "long-key": (GOOD + "k" * 900 + ": 1\n", "unknown setting"),
    "long-value": (GOOD.replace("epochs: 1", f"epochs: {'y' * 100_000}"), "epochs"),
    "two-documents": (GOOD + "---\n" + GOOD, "found another document"),
}


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.thin(5)
def test_hostile_text_is_refused_in_a_short_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    if words == "hidden":
        assert read(path, TrainJob).model.options, "what a network's options hold is judged where it is built"
        return
    with pytest.raises(InputError) as refusal:
        read(path, TrainJob)
    message = str(refusal.value)
    assert words in message and "c.yaml" in message, message
    assert len(message) <= LONGEST_MESSAGE and message.isprintable(), message


@pytest.mark.parametrize(("text", "words"), [("[" * 3000, "nested too deeply"), ("[1" + ",1" * 30_000, "values")])
def test_reading_stops_where_a_document_becomes_too_deep_or_too_long(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):  # its missing brackets were not come to
        parse(text)


def test_the_long_key_of_a_message_is_cut_in_the_middle_and_the_advice_stays() -> None:
    with pytest.raises(InputError) as refusal:
        TrainJob.parse({"k" * 10_000: 1, "out": "o", "objective": {"kind": "standard"}}, source="c.yaml")
    assert str(refusal.value).startswith("c.yaml: unknown setting 'kkk") and str(refusal.value).endswith(
        "teacher_arch, threat."
    )


def test_ordinary_documents_are_read_as_before() -> None:
    assert parse("a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\n") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert parse("[1, 2.5, yes, 'no', null, 1e-3]") == [1, 2.5, "yes", "no", None, 0.001]
    assert value_of("") is None and value_of("[64, 64]") == [64, 64]


# extends


@pytest.mark.parametrize(
    "base",
    ["/dev/zero", "/etc/passwd", "../outside.yaml", "sub/../../outside.yaml", "link.yaml", "sub/link/outside.yaml"],
)
def test_nothing_outside_the_folder_is_extended(tmp_path: Path, base: str) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("SECRET: [\n")
    (inside / "link.yaml").symlink_to("../outside.yaml")
    (inside / "sub" / "link").symlink_to(tmp_path)
    (inside / "c.yaml").write_text(f"extends: {base}\n{GOOD}")
    with pytest.raises(InputError, match=r"is outside the folder .*inside: copy the file into it") as refusal:
        read(inside / "c.yaml", TrainJob)
    assert "SECRET" not in str(refusal.value)


def test_a_file_further_down_may_extend_one_further_up_within_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("extends: ../base.yaml\nepochs: 2\n")
    (tmp_path / "base.yaml").write_text(GOOD)
    (tmp_path / "c.yaml").write_text("extends: sub/b.yaml\n")
    assert read(tmp_path / "c.yaml", TrainJob).epochs == 2
    with pytest.raises(InputError, match="is outside the folder"):
        read(tmp_path / "sub" / "b.yaml", TrainJob)


def test_a_folder_that_is_reached_by_a_link_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "base.yaml").write_text(GOOD)
    (tmp_path / "real" / "c.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "link").symlink_to("real")
    assert read(tmp_path / "link" / "c.yaml", TrainJob).epochs == 1


@pytest.mark.parametrize("base", ['"a\\0b"', "x" * 5000, "sub", ".", "fifo", '"\\e[2J"', "loop"])
def test_what_is_no_file_is_not_extended(tmp_path: Path, base: str) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "c.yaml").write_text(f"extends: {base}\n{GOOD}")
    with pytest.raises(InputError) as refusal:
        read(tmp_path / "c.yaml", TrainJob)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) <= LONGEST_MESSAGE


def test_devices_and_pipes_are_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", Path("/dev/zero")):
        with pytest.raises(InputError, match="it is a device or a pipe, not a file"):
            read(path, TrainJob)
