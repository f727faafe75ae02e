"""Damage to files, as by faulty disks, killed processes or attackers, for tests of code that reads files."""

import re

import numpy as np

STRANGE = (
    b"",
    b"null",
    b"{}",
    b"[]",
    b"[{}]",
    b"\xff\xfe\x00",
    b"[" * 20_000,
    b'{"a": ' * 20_000,
    b"NaN",
    b'"\\ud800"',
    b"7" * 5_000,
)
"""Contents of files of another kind."""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change random places: a changed byte, a truncation, a repeated or removed part, or a number of all ones."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(max(1, len(changed))))
        length = int(rng.integers(1, 40))
        kind = int(rng.integers(5))
        if kind == 0:
            changed[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + 4] = b"\xff\xff\xff\xff"
        else:
            del changed[max(1, len(changed) - length) :]
    return bytes(changed)


def reworded(text: bytes, rng: np.random.Generator) -> bytes:
    """Replace one value of a JSON or YAML text by one of another type, so that the text stays well formed."""
    values = list(re.finditer(rb'(?<=[:\[,] )("[^"]*"|-?[0-9.e+-]+|true|false|null|[a-z_]+(?=\n))', text))
    if not values:
        return damaged(text, rng)
    found = values[int(rng.integers(len(values)))]
    other = (b"null", b"-1", b"1e400", b'"../../x"', b"[]", b"{}", b"true", b"NaN", b'"\\udce9"', b"9" * 30, b'""')
    return text[: found.start()] + other[int(rng.integers(len(other)))] + text[found.end() :]
