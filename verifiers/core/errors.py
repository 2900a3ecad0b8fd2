"""The one exception for input that a person can correct."""


class InputError(ValueError):
    """Something given from outside cannot be used.

    The message is one line: it repeats what was given and says what to do. The command line prints it as it is and
    exits with code 2.

    Example:
        >>> try:
        ...     certkd.load_checkpoint("missing.pt")
        ... except certkd.InputError as error:
        ...     print(error)
    """


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """What an error of a library says, without line breaks, cut off where it gets long."""
    return " ".join(str(error).split())[:limit]


def did_you_mean(given: str, known: list[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, or the list of all of them when none is near."""
    import difflib

    near = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."


class Unsupported(Exception):
    """A method cannot handle a network or a norm; the message names the layer or what is missing."""


class Contradiction(Exception):
    """Two facts about a network exclude each other: a bound is broken by an attack, or a graph is another network."""
