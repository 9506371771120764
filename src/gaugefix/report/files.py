"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gaugefix.errors import ReportError


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file so that no reader ever sees half of it.

    The text goes to a temporary file in the same folder, which then takes the name of the target. Missing folders
    are made.

    Args:
        path: the target; a file that is there is replaced.
        text: UTF-8.

    Returns:
        The absolute path.

    Raises:
        ReportError: if the folder cannot be made or the file not be written; the old file, if any, is untouched.

    Example:
        >>> write_text("/tmp/gaugefix-doctest/a.txt", "text").read_text()
        'text'
    """
    target = Path(path).expanduser().absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ReportError(f"Cannot write {target}: {error.strerror or error}. Choose another folder.") from error
    return target


def _umask() -> int:
    """The process's file-creation mask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
