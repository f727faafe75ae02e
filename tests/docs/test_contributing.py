"""CONTRIBUTING's file tree has every folder and room, in the order that `tests/test_layers.py` enforces."""

import re
from pathlib import Path

from tests.test_layers import ROOMS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_file_tree_is_that_of_the_layers() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"^```\n(models/.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    found: dict[str, list[str]] = {}
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            found[list(found)[-1]].append("" if name == "(files)" else re.sub(r"/$|\.py$", "", name))
        else:
            found[name.rstrip("/")] = []
    for folder, rooms in ROOMS.items():
        assert [room for room in found[folder] if room] == [room for room in rooms if room]
    others = set(found) - set(ROOMS)
    assert others == {"sepscene", "tests", "benchmarks", "docs", "examples"}
    assert all((REPOSITORY / name).is_dir() for name in found)
