"""The fuzzer notices what it is there to notice."""

import subprocess
import sys

import pytest

from tests.fuzz.mutate import BYTES, TEXT, mutants
from tests.fuzz.trial import SECRET, Sandbox
from verifiers.core.errors import InputError

TEXTS = [b"epochs: 1\nmodel: {name: certkd:mlp}\n", b"index,label,eps\n0,1,2/255\n"]


def test_a_seed_names_its_files() -> None:
    once, again = (list(mutants(TEXTS, 50, 3, TEXT)) for _ in range(2))
    assert once == again
    assert [content for _, content in once] != [content for _, content in mutants(TEXTS, 50, 4, TEXT)]
    assert sum(content not in TEXTS for _, content in once) > 45, "mutations leave files as they are"


def test_every_mutation_is_used_and_takes_an_empty_file() -> None:
    names = " ".join(name for name, _ in mutants([*TEXTS, b""], 500, 0, TEXT))
    assert all(mutation.__name__ in names for mutation in (*BYTES, *TEXT))


def test_a_refusal_is_returned_and_other_errors_are_not_hidden(sandbox: Sandbox) -> None:
    def refuse() -> None:
        raise InputError("no")

    def fail() -> None:
        raise KeyError("x")

    assert str(sandbox.call("refused", refuse)) == "no"
    assert sandbox.call("fine", lambda: None) is None
    with pytest.raises(KeyError):
        sandbox.call("a bug", fail)


def test_harm_is_noticed(sandbox: Sandbox) -> None:
    canary = sandbox.outside / "canary.txt"
    for harm in (canary.read_text, lambda: subprocess.run([sys.executable, "-c", ""], check=True)):
        with pytest.raises(AssertionError, match=r"open|Popen"):
            sandbox.call("harm", harm)
    with pytest.raises(AssertionError, match="a file outside was changed"):
        sandbox.call("harm", lambda: canary.rename(canary.with_suffix(".gone")))


@pytest.mark.parametrize("message", ["x" * 2000, "a\x1b[2Jb", f"the line is {SECRET}"])
def test_messages_are_short_printable_and_keep_secrets(sandbox: Sandbox, message: str) -> None:
    def refuse() -> None:
        error = InputError("")
        error.args = (message,)
        raise error

    with pytest.raises(AssertionError):
        sandbox.call("a message", refuse)


def test_a_command_and_a_process_of_its_own(sandbox: Sandbox) -> None:
    for run in (sandbox.command, sandbox.process):
        assert run("help", "show", "--help").code == 0
        assert "no certificate file" in run("missing", "show", "missing.h5").err
