"""Makes text from outside (file names, labels, reasons) safe to print: control characters are escaped."""

import logging
import re
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Characters that control a terminal, change the direction of text or cannot be saved: control characters except tab
and newline, bidirectional overrides, and lone surrogates (bytes of a file name that are not UTF-8)."""


def printable(text: str) -> str:
    """The text with every control character escaped, e.g. `\\x1b` for escape."""
    return _CONTROLS.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's representation of a byte in a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Terminal(Console):
    """A console that prints strings as plain text: no markup in square brackets, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as rich text, with control characters escaped; rich also calls this for tables."""
        return super().render_str(printable(text), **options)


class PlainFormatter(logging.Formatter):
    """A log formatter that escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, with control characters escaped."""
        return printable(super().format(record))
