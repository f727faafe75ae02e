"""Only RunFolder and the other folder classes contain the names of files in the folders of runs and sweeps."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
ORCHESTRATION = REPOSITORY / "orchestration"
RECORDS = ORCHESTRATION / "records"
NAMES = [RECORDS / "run_folder.py", RECORDS / "sweep_folder.py"]
OTHERS = sorted(path for path in ORCHESTRATION.rglob("*.py") if path not in NAMES)
BENCHMARKS = sorted((REPOSITORY / "benchmarks").rglob("*.py"))
TEMPLATES = sorted((ORCHESTRATION / "reports" / "templates").glob("*.j2"))

PATH_METHODS = {"glob", "rglob", "joinpath", "with_name", "with_stem", "with_suffix"}

OTHER_FOLDERS = {
    "evaluation/downstream.py": "results of tasks, in a folder that the user names",
    "evaluation/embedding_writer.py": "the output of `sepscene embed` and its parts",
    "planning/calibration.py": "scenes in a temporary folder",
    "presets.py": "the separators that Sepscene contains",
    "records/checkpoints.py": "the file of an earlier version",
    "records/environment.py": "the Git repository of a checkout",
    "records/mlflow_address.py": "the installed MLflow",
    "records/mlflow_mirror.py": "the card in a folder of weights",
    "records/mlflow_registry.py": "the README in a folder of weights, and a module",
    "records/mlflow_ui.py": "private files of the server",
    "reports/render.py": "templates and style sheet",
    "runtime/jobs.py": "Ray's token",
    "runtime/private_files.py": "the folder of private files, and Ray's token",
    "source.py": "a copy of the package",
}
"""The other files that build paths from names, and what these paths are; none is in the folder of a run or sweep."""

OWN_FILES = {
    "audioset_size.py": {"ledger.json"},
    "check.py": {"report.md"},
    "demo_ladder.py": {"state.pt"},
}
"""Files of benchmarks that are in their own folders and are named like those of a run."""


def _strings(path: Path) -> set[str]:
    """All strings of a file except docstrings and text with spaces, and the literal parts of its f-strings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and not re.search(r"\s", node.value)
    }


def _string_constants(path: Path) -> set[str]:
    """The names of a module's constants that are strings."""
    return {
        target.id
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


CONSTANTS = set[str]().union(
    *(
        _string_constants(path)
        for folder in ("models", "augment", "tasks")
        for path in (REPOSITORY / folder).rglob("*.py")
    ),
    *(_string_constants(path) for path in OTHERS),
)


def _is_name(node: ast.expr) -> bool:
    """Whether an expression is a literal name: a string, an f-string, or a constant that is a string."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value != "*"
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id in CONSTANTS)


def _built_paths(path: Path) -> set[str]:
    """The expressions of a file that append a literal name to a path, or search for one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            appended = [node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATH_METHODS:
            appended = node.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Path":
            appended = node.args[1:]
        else:
            continue
        if any(map(_is_name, appended)):
            found.add(ast.unparse(node))
    return found


def _places(path: Path) -> set[str]:
    """The names of files and folders that a file passes to `Place`, or appends to a path."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Place":
            names.add(str(ast.literal_eval(node.args[0])).rpartition("/")[2])
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            names.add(str(node.right.value))
    return names


RESERVED = {name for path in NAMES for name in _places(path)}
RESERVED_FILES = {name for name in RESERVED if "." in name}
"""The names that only the files in `NAMES` may contain, because they cannot mean anything else."""


def _reserved(strings: set[str]) -> set[str]:
    """The names of files among these strings, alone or at the end of a path, and the names of stages."""
    found = {text.rpartition("/")[2] for text in strings}
    return found & RESERVED_FILES | {text for text in strings if text.startswith("pretrain-")}


def test_the_names_are_found() -> None:
    assert {"experiment.yaml", "sweep.json", "ladder.json", "mlflow.db", "listen.html", "state.pt"} <= RESERVED_FILES
    assert {"trials", "fatal", "store", "held", "mlartifacts"} <= RESERVED


@pytest.mark.parametrize(
    ("code", "paths", "names"),
    [
        ('folder / "results.json"', 1, {"results.json"}),
        ('folder / f"step-{step:08d}.json"', 1, set()),
        ('folder.glob("step-*.json")', 1, set()),
        ('best.with_name("best.partial")', 1, {"best.partial"}),
        ('Path(folder, "metrics.jsonl")', 1, {"metrics.jsonl"}),
        ('path = f"{run_dir}/report.html"', 0, {"report.html"}),
        ('STORE_FILE = "mlflow.db"', 0, {"mlflow.db"}),
        ("folder / CARD_FILE", 1, set()),
        ('stage = "pretrain-mix-chan"', 0, {"pretrain-mix-chan"}),
        ("seconds / HOUR", 0, set()),
        ('"""RUN/results.json"""', 0, set()),
    ],
)
def test_each_way_to_spell_a_name_is_found(code: str, paths: int, names: set[str], tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(code)
    assert len(_built_paths(tmp_path / "module.py")) == paths
    assert _reserved(_strings(tmp_path / "module.py")) == names


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ORCHESTRATION)))
def test_no_other_file_names_a_file_of_a_run(path: Path) -> None:
    assert not _reserved(_strings(path))
    built = _built_paths(path)
    if str(path.relative_to(ORCHESTRATION)) in OTHER_FOLDERS:
        assert built, "it builds no path any more: remove it from OTHER_FOLDERS"
    else:
        assert not built, "add a name to a class of run_folder.py, or the file to OTHER_FOLDERS"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_benchmark_names_a_file_of_a_run(path: Path) -> None:
    assert _reserved(_strings(path)) == OWN_FILES.get(path.name, set())


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_pages_get_their_links_from_the_folder(path: Path) -> None:
    assert not re.findall(r'(?:href|src)="[^"{#][^"]*\.(?:html|md|json|flac|svg)"', path.read_text())
