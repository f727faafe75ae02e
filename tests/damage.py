"""Damage as disks, kills and strangers do it, for the tests of whatever reads files."""

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
"""Whole files that are something else."""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bytes, a cut, a repeated or a removed piece, or a number of all ones."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(max(1, len(changed)))), int(rng.integers(1, 40))
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
    """One value of a JSON or YAML text replaced by one of another kind, so that the text stays well formed."""
    values = list(re.finditer(rb'(?<=[:\[,] )("[^"]*"|-?[0-9.e+-]+|true|false|null|[a-z_]+(?=\n))', text))
    if not values:
        return damaged(text, rng)
    found = values[int(rng.integers(len(values)))]
    other = (b"null", b"-1", b"1e400", b'"../../x"', b"[]", b"{}", b"true", b"NaN", b'"\\udce9"', b"9" * 30, b'""')
    return text[: found.start()] + other[int(rng.integers(len(other)))] + text[found.end() :]
