"""The one way a file is written: whole or not at all, and a mendable error if it cannot be done."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gaugefix.errors import ReportError


def write_atomically(path: Path | str, content: str | bytes) -> Path:
    """Write to a temporary file in the same folder, then rename it: a reader never sees half a file.

    Args:
        path: where to write; ``~`` is the home folder, missing folders are made, a file that is there is replaced.
        content: text (UTF-8) or bytes.

    Returns:
        The absolute path.

    Raises:
        ReportError: if the folder cannot be made or the file not be written; the old file, if any, is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "new" / "note.txt", "hello").read_text()
        'hello'
        >>> write_atomically("/dev/null/audit.html", "text")
        Traceback (most recent call last):
        ...
        gaugefix.errors.ReportError: Cannot write /dev/null/audit.html: ... Choose another folder.
    """  # noqa: DOC502
    target = Path(path).expanduser().absolute()
    with _mendable(target):
        return _write(target, content.encode() if isinstance(content, str) else content)


def check_writable(path: Path | str) -> None:
    """Find out before a long computation whether its result can be written; makes missing folders.

    Args:
        path: what will be written.

    Raises:
        ReportError: if it cannot be.
    """  # noqa: DOC501, DOC502
    target = Path(path).expanduser().absolute()
    with _mendable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=target.parent):
            pass


@contextmanager
def _mendable(target: Path) -> Iterator[None]:
    """Turn what the system says into what a user can do."""
    try:
        yield
    except OSError as error:
        raise ReportError(f"Cannot write {target}: {error.strerror or error}. Choose another folder.") from error


def _write(target: Path, content: bytes) -> Path:
    """To a temporary neighbour, which takes the place of the target or goes away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _umask() -> int:
    """The permissions mask of the process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
