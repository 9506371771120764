"""Writing a report: whole or not at all, and a mendable error if it cannot be done."""

from __future__ import annotations

from pathlib import Path

from gaugefix.errors import ReportError
from gaugefix.files import write_atomically


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file; missing folders are made, a file that is there is replaced.

    Args:
        path: the target.
        text: its content.

    Returns:
        The absolute path.

    Raises:
        ReportError: if the folder cannot be made or the file not be written; the old file, if any, is untouched.

    Example:
        >>> write_text("/dev/null/audit.html", "text")
        Traceback (most recent call last):
        ...
        gaugefix.errors.ReportError: Cannot write /dev/null/audit.html: ... Choose another folder.
    """
    target = Path(path).expanduser().absolute()
    try:
        return write_atomically(target, text)
    except OSError as error:
        raise ReportError(f"Cannot write {target}: {error.strerror or error}. Choose another folder.") from error
