"""The API reference matches the sources, and names without a docstring are reported."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''
"""A module.

With more.
"""

RATE = 3
"""Hz."""

class Settings(Config):
    """Settings of it."""

    rate: int | None = Field(None, ge=1, description="Hz | kHz")
    names: dict[str, int] = Field(default_factory=dict)

    def bare(self): ...

    @property
    def samples(self) -> int:
        """T."""


class Longer(Settings):
    """Settings with a minute more."""

    def samples(self) -> int: ...

    def bare(self): ...


class Longest(Longer):
    """Settings with an hour more."""

    def samples(self) -> int: ...

    def new(self): ...


def long_call(first_argument: dict[str, tuple[int, int]], second_argument: str = "a, b", *, third: float) -> int:
    """Does it.

    Args:
        first_argument: of two
            lines.
        third: in Hz.

    Raises:
        ValueError: always.

    Tail.
    """


def _hidden() -> None: ...
'''


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "docs" / "make_api.py"
    spec = importlib.util.spec_from_file_location("make_api", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_has_fields_signatures_and_sections(make_api: ModuleType) -> None:
    text = make_api.page("models.demo", ast.parse(SOURCE))
    assert text.startswith("# `models.demo`\n\nA module.\n\nWith more.")
    assert "## `RATE`\n\nHz." in text
    assert "| `rate` | `int \\| None` | `None` | Hz \\| kHz |" in text
    assert "| `names` | `dict[str, int]` | `dict()` |  |" in text
    assert "### `Settings.samples`\n\n```python\nsamples: int\n```" in text
    assert "    first_argument: dict[str, tuple[int, int]],\n    second_argument: str=" in text
    assert "**Args**\n\n- first_argument: of two\n  lines.\n- third: in Hz." in text
    assert "**Raises**\n\n- ValueError: always.\n\nTail." in text
    assert "_hidden" not in text


def test_undocumented_names_are_found_unless_a_base_class_documents_them(make_api: ModuleType) -> None:
    tree = ast.parse(SOURCE)
    names = list(make_api.undocumented(tree, make_api.classes_of([tree])))
    assert names == ["Settings.bare", "Longer.bare", "Longest.new"]


def test_every_public_name_of_the_project_is_documented(
    make_api: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_api.main(["--check"]) == 0, capsys.readouterr().out


def test_reference_covers_every_module_and_every_link_resolves(make_api: ModuleType, tmp_path: Path) -> None:
    assert make_api.main([str(tmp_path)]) == 0
    pages = {path.name for path in tmp_path.iterdir()} - {"index.md"}
    assert {
        "sepscene.models.encoders.encoder.md",
        "sepscene.tasks.paper.claims.md",
        "sepscene.orchestration.reports.run_report.md",
    } <= pages
    index = (tmp_path / "index.md").read_text()
    assert {line.split("](")[1].split(")")[0] for line in index.splitlines() if "](" in line} == pages
