"""The import law: the folders are the architecture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    "models": set(),
    "augment": {"models"},
    "tasks": {"models", "augment"},
    "clusters": {"models"},
    "orchestration": {"models", "augment", "tasks", "clusters"},
}
FOLDERS = set(MAY_IMPORT)
FILES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_follow_the_law(path: Path) -> None:
    folder = path.relative_to(REPOSITORY).parts[0]
    names = imported(path)
    foreign = (names & FOLDERS) - MAY_IMPORT[folder] - {folder}
    assert not foreign, f"{folder}/ may not import {', '.join(sorted(foreign))}"
    if folder != "orchestration":
        assert not names & {"ray", "mlflow"}, "only orchestration/ may import ray or mlflow"


def test_the_law_covers_real_files() -> None:
    assert len(FILES) > 30 and "ray" in imported(REPOSITORY / "orchestration" / "stream.py")


@pytest.mark.slow
def test_processes_that_only_pass_work_on_do_without_torch() -> None:
    """A trial starts about a dozen processes; torch would take seconds and hundreds of megabytes in each of them."""
    handed_on = "augment.reader, augment.service, orchestration.embed_clips, orchestration.rows, orchestration.stream"
    heavy = "sorted({'torch', 'sklearn', 'scipy', 'mlflow'} & set(sys.modules))"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, {handed_on}; print({heavy})"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == "[]"
