"""Damage valid files: the same seed gives the same files."""

import random
import re
from collections.abc import Callable, Iterator, Sequence

#: Changes the content of a file; the second argument is another valid file of the kind.
Mutation = Callable[[bytes, bytes, random.Random], bytes]

#: Numbers that programs stumble over, as a binary file may hold them.
_WORDS = tuple(
    number.to_bytes(size, order, signed=False)
    for size in (1, 2, 4, 8)
    for number in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
#: Pieces of text that parsers stumble over.
TOKENS = (
    *("", " ", "\n", "\r", "\t", "\0", "\x1b[2J", "\x1b]0;title\x07", "\u202e", "\ufeff", "\ud800", "é", "𝕏"),
    *("-1", "0", "1e999", "-1e999", "nan", "inf", "1/0", "0x" + "f" * 5000, "9" * 5000, "2001-99-99", "1:30", "010"),
    *("null", "true", "~", "[]", "{}", "[" * 3000, "{a: " * 300, "&a [*a]", "*a", "!!int x", "!!python/name:os.system"),
    *("!!bool maybe", "!!binary x", "%YAML 9.9", "---\n...\n---", "<<: *a", "? [a, b]\n: c", "{[a]: b}", '"', "'", ","),
    *("/dev/zero", "/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "$(touch x)", "`id`", "A" * 100_000),
)


def mutants(
    valid: Sequence[bytes], count: int, seed: int, mutations: Sequence[Mutation] = ()
) -> Iterator[tuple[str, bytes]]:
    """Yield damaged files with names for messages: one to four mutations each.

    Args:
        valid: valid files of one kind.
        count: number of damaged files.
        seed: chooses the mutations.
        mutations: those that know the kind, in addition to ``BYTES``.
    """
    everything = (*BYTES, *mutations, *mutations)  # what knows the structure gets past the first checks
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        content, names = chance.choice(valid), []
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            mutation = chance.choice(everything)
            content = mutation(content, chance.choice(valid), chance)
            names.append(mutation.__name__)
        yield f"seed {seed}, number {number}: {', '.join(names)}", content


def flip(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change one to eight bytes."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8)) if content else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def flip_early(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change a byte of the header."""
    return flip(content[:256], other, chance) + content[256:]


def truncate(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Cut off the end."""
    return content[: chance.randrange(len(content) + 1)]


def insert(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Insert random bytes."""
    place = chance.randrange(len(content) + 1)
    return content[:place] + chance.randbytes(chance.choice((1, 4, 64))) + content[place:]


def remove(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Remove some bytes."""
    place = chance.randrange(len(content) + 1)
    return content[:place] + content[place + chance.choice((1, 4, 64, 1024)) :]


def repeat(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Write a piece of the file twice."""
    start, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:]


def splice(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Join the beginning of one file and the end of another."""
    return content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other) + 1) :]


def number(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Overwrite some bytes by a number at the edge of its range."""
    word = chance.choice(_WORDS)
    place = chance.randrange(max(1, len(content) - len(word)))
    return content[:place] + word + content[place + len(word) :]


BYTES: tuple[Mutation, ...] = (flip, flip_early, truncate, insert, remove, repeat, splice, number)


def swap_token(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Replace a word or a number of a text by what parsers stumble over."""
    places = [match.span() for match in re.finditer(rb"[\w./+-]+", content)]
    if not places:
        return content
    start, end = chance.choice(places)
    return content[:start] + chance.choice(TOKENS).encode("utf-8", "surrogatepass") + content[end:]


def insert_token(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Insert what parsers stumble over."""
    place = chance.randrange(len(content) + 1)
    return content[:place] + chance.choice(TOKENS).encode("utf-8", "surrogatepass") + content[place:]


def mix_lines(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Repeat, drop and move lines, some of them from another file."""
    lines = content.splitlines(keepends=True) or [b""]
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(other.splitlines(keepends=True) or [b""]))
    del lines[chance.randrange(len(lines))]
    if chance.random() < 0.3:
        chance.shuffle(lines)
    return b"".join(lines)


#: For files of text.
TEXT: tuple[Mutation, ...] = (swap_token, insert_token, mix_lines)
