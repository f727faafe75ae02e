"""The example lab: as long as promised, word for word in the guide."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "examples" / "mylab"
FILES = sorted(path for path in LAB.rglob("*") if path.suffix in (".py", ".toml"))


def test_it_has_fewer_than_120_lines() -> None:
    assert len(FILES) == 5 and sum(len(path.read_text().splitlines()) for path in FILES) < 120


@pytest.mark.parametrize("path", [path for path in FILES if path.stat().st_size > 200], ids=lambda path: path.name)
def test_the_guide_shows_each_file_word_for_word(path: Path) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert path.read_text() in blocks
