"""Text from outside on a terminal or a page: file names, reasons and labels are shown, and do nothing else."""

import logging
import re
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Characters that steer a terminal, turn the direction of writing, or may not stand in a file: escape and the other
controls but tab and line end, bidirectional overrides, lone surrogates (bytes of a file name that are not UTF-8)."""


def printable(text: str) -> str:
    """The text with every control character written out, e.g. `\\x1b` for escape."""
    return _CONTROLS.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Terminal(Console):
    """A console on which a string is text: no markup in square brackets, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is shown, also in tables."""
        return super().render_str(printable(text), **options)


class PlainFormatter(logging.Formatter):
    """Log messages as lines of text."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with control characters written out."""
        return printable(super().format(record))
