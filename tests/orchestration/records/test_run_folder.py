"""Only RunFolder and the other folder classes contain the paths of files in a run's folder."""

import ast
from pathlib import Path

import pytest

ORCHESTRATION = Path(__file__).resolve().parents[3] / "orchestration"
NAMES = [ORCHESTRATION / "records" / name for name in ("run_folder.py", "sweep_folder.py")]
OTHERS = sorted(path for path in ORCHESTRATION.rglob("*.py") if path not in NAMES)


def _joined(path: Path) -> set[str]:
    """The literals that a file appends to a path by `/`."""
    return {
        node.right.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant)
        and isinstance(node.right.value, str)
    }


def _places(path: Path) -> set[str]:
    """The names of files and folders that a file passes to `Place`."""
    return {
        str(ast.literal_eval(node.args[0])).rpartition("/")[2]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Place"
    }


RESERVED = set().union(*map(_joined, NAMES), *map(_places, NAMES))
"""The names that only the files in `NAMES` may contain."""


def test_the_names_are_found() -> None:
    assert {
        "experiment.yaml",
        "metrics.jsonl",
        "results.json",
        "sweep.json",
        "trials",
        "fatal",
        "ladder.json",
        "store",
    } <= RESERVED


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ORCHESTRATION)))
def test_no_other_file_contains_such_a_path(path: Path) -> None:
    assert not _joined(path) & RESERVED
