"""Read files from outside: regular ones, and none that is larger than its kind."""

from pathlib import Path

from verifiers.core.errors import InputError, loading


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """Read a file whose size is bounded; devices and pipes are never opened.

    Args:
        path: of the file.
        what: its kind in messages, like "a log of smoothing".
        limit: the largest size, in bytes.

    Raises:
        InputError: missing, not a regular file, too large, or not readable.
    """
    with loading(path, what):
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{path} is larger than {what} may be ({limit} bytes)")
    return content


def read_text(path: Path, what: str, limit: int, encoding: str = "utf-8") -> str:
    """Read a text whose size is bounded.

    Raises:
        InputError: as ``read_bytes``, or not text.
    """
    try:
        return read_bytes(path, what, limit).decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}: it is not UTF-8 text: give {what}") from None


def check_regular(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        InputError: a folder, a device or a pipe.
        FileNotFoundError: there is nothing.
    """
    if not path.is_file():
        path.stat()
        what = "folder" if path.is_dir() else "device or a pipe"
        raise InputError(f"cannot read {path}: it is a {what}, not a file")
