"""Architecture rules: which folders and rooms can import each other, and what only certain files can do."""

import ast
import graphlib
import subprocess
import sys
import tomllib
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
"""The other folders that a folder may import."""

ROOMS = {
    "models": ("", "separators", "encoders"),
    "augment": ("", "augmentations", "synthetic", "store", "separation"),
    "tasks": ("", "distributed", "losses", "datasets", "evaluation", "paper"),
    "clusters": ("",),
    "orchestration": (
        "",
        "records",
        "runtime",
        "training",
        "evaluation",
        "reports",
        "mini",
        "pipeline",
        "sweeps",
        "planning",
        "api",
        "cli",
    ),
}
"""The rooms of each folder; a room may import the rooms before it. "" is the folder itself."""

FILES_IN_A_ROOM = 20
FOLDERS = set(MAY_IMPORT)
FILES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
OTHER_FOLDERS = ("sepscene", "tests", "benchmarks", "docs", "examples")
OTHER_FILES = sorted(path for folder in OTHER_FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
TESTS_AND_BENCHMARKS = [
    path for path in OTHER_FILES if path.relative_to(REPOSITORY).parts[0] in ("tests", "benchmarks")
]


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, including imports in functions and relative ones."""
    package = ("sepscene", *path.relative_to(REPOSITORY).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*start, *([node.module] if node.module else [])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def only_for_types(path: Path) -> set[str]:
    """Names of the modules that a file imports under `if TYPE_CHECKING`."""
    blocks = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {line.module for block in blocks for line in block.body if isinstance(line, ast.ImportFrom) and line.module}


def place(parts: tuple[str, ...]) -> tuple[str, str]:
    """Folder and room of a module, from the parts of its name after `sepscene`."""
    folder, *inside = parts
    return folder, inside[0] if inside and inside[0] in ROOMS[folder] else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_follow_the_rules(path: Path) -> None:
    check_imports(path, imported(path))


def check_imports(path: Path, names: set[str]) -> None:
    """Check what a file of a room imports."""
    folder, room = place(path.relative_to(REPOSITORY).with_suffix("").parts)
    assert not {name for name in names if name.split(".")[0] in FOLDERS}, "import it as sepscene.…"
    order = ROOMS[folder]
    for name in sorted(names):
        parts = tuple(name.split("."))
        if parts[0] != "sepscene" or len(parts) < 2 or parts[1] not in FOLDERS:
            continue
        other, other_room = place(parts[1:])
        if other != folder:
            assert other in MAY_IMPORT[folder], f"{folder}/ may not import {name}"
        else:
            assert order.index(other_room) <= order.index(room), f"{room or folder} may not import {name}"
    if folder != "orchestration":
        assert not {name.split(".")[0] for name in names} & {"ray", "mlflow"}, "only orchestration/ may import them"


def test_evaluation_trains_nothing() -> None:
    """The pipeline makes all encoders. The room that evaluates them imports nothing of the one that trains."""
    files = (REPOSITORY / "orchestration" / "evaluation").glob("*.py")
    names = {name for path in files for name in imported(path)}
    assert "sepscene.orchestration.config" in names
    assert [name for name in names if name.startswith("sepscene.orchestration.training")] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also not by imports in functions."""
    names = {".".join(("sepscene", *path.relative_to(REPOSITORY).with_suffix("").parts)): path for path in FILES}
    graph = {name: (imported(path) - only_for_types(path)) & names.keys() for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_rules_cover_real_files() -> None:
    assert len(FILES) > 30 and "ray.data" in imported(REPOSITORY / "orchestration" / "training" / "stream.py")


@pytest.mark.parametrize(
    "line",
    [
        "import ray",
        "import sepscene.orchestration",
        "from sepscene import orchestration",
        "from sepscene.orchestration import config",
        "from orchestration import config",
        "from ... import orchestration",
        "from ...orchestration import config",
        "from sepscene.augment import separation",
        "from .. import separation",
        "def late():\n    from ..separation.reader import ClipReader",
    ],
)
def test_every_form_of_a_forbidden_import_is_found(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "augment" / "store" / "new.py"
    path.parent.mkdir(parents=True)
    allowed = "from sepscene import models\nfrom . import index\nfrom .. import draws\n"
    path.write_text(allowed)
    check_imports(path, imported(path))
    path.write_text(allowed + line)
    with pytest.raises(AssertionError, match=r"may not import|import it as|only orchestration/"):
        check_imports(path, imported(path))


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: path.name)
def test_a_room_is_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= FILES_IN_A_ROOM
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree), "describe the room in one sentence"
    assert len(tree.body) == 1, "an __init__ must import nothing"


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in TESTS_AND_BENCHMARKS}),
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_a_folder_of_tests_or_benchmarks_is_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= FILES_IN_A_ROOM
    init = folder / "__init__.py"
    body = ast.parse(init.read_text()).body if init.exists() else []
    assert all(isinstance(node, ast.Expr) for node in body), "an __init__ must import nothing"


def test_the_tests_mirror_the_rooms() -> None:
    """Each folder with tests of a part of the package is called like one of its rooms."""
    rooms = {path.parent.relative_to(REPOSITORY) for path in FILES}
    folders = {path.parent.relative_to(REPOSITORY / "tests") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert {folder for folder in folders if folder.parts and folder.parts[0] in FOLDERS} <= rooms


def test_the_package_lists_every_room() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted({"sepscene", *(f"sepscene.{room}" for room in rooms)})


@pytest.mark.slow
def test_processes_that_only_pass_on_data_do_not_import_torch() -> None:
    """A trial starts about a dozen processes; torch takes seconds and hundreds of megabytes in each of them."""
    handed_on = (
        "sepscene.augment.separation.reader, sepscene.augment.separation.service, "
        "sepscene.orchestration.evaluation.embed_clips, sepscene.orchestration.training.row_draws, "
        "sepscene.orchestration.training.stream"
    )
    heavy = "sorted({'torch', 'sklearn', 'scipy', 'mlflow'} & set(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys, {handed_on}; print({heavy})"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == "[]"


def private_parts_of_ray(path: Path) -> set[str]:
    """Private names of Ray that a file uses: by import, or as attribute of an object other than `self` or `cls`."""
    names = {name for name in imported(path) if name.split(".")[0] == "ray"}
    if not names:
        return set()
    taken = {name for name in names if any(part.startswith("_") for part in name.split("."))}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            taken |= set() if own else {ast.unparse(node)}
    return taken


PRIVATE_PARTS_IN_TESTS = {
    # It tests the workarounds of ray_compat.py, which use these parts.
    "tests/orchestration/runtime/test_ray_compat.py": None,
    # Ray has no public function that checks a cluster's description without a cloud.
    "tests/clusters/test_templates.py": {"ray.autoscaler._private.util"},
}
"""Tests that use private parts of Ray -> the modules that they may use; None: any."""


@pytest.mark.parametrize(
    "path",
    [path for path in TESTS_AND_BENCHMARKS if any(name.split(".")[0] == "ray" for name in imported(path))],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_tests_and_benchmarks_use_no_private_parts_of_ray(path: Path) -> None:
    """Private attributes of our own modules are allowed here, so only those of Ray's objects would be a mistake."""
    private = {name for name in private_parts_of_ray(path) if not own_private_part(path, name)}
    name = path.relative_to(REPOSITORY).as_posix()
    if name not in PRIVATE_PARTS_IN_TESTS:
        assert not private, "use a public function of Ray, or add an exception with its reason"
        return
    assert private, "it needs no exception any more"
    allowed = PRIVATE_PARTS_IN_TESTS[name]
    assert allowed is None or all(part.startswith(tuple(allowed)) for part in private)


def own_private_part(path: Path, part: str) -> bool:
    """Whether `part`, such as `jobs._environment`, is an attribute of a module of ours or of the standard library."""
    owner = part.split(".")[0]
    modules = {name for name in imported(path) if name.split(".")[-1] == owner}
    return bool(modules) and not any(name.split(".")[0] == "ray" for name in modules)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_one_file_uses_private_parts_of_ray(path: Path) -> None:
    if path.relative_to(REPOSITORY).as_posix() == "orchestration/runtime/ray_compat.py":
        assert private_parts_of_ray(path)
    else:
        assert not private_parts_of_ray(path), "move it to orchestration/runtime/ray_compat.py, or avoid it"


def attributes(path: Path) -> set[str]:
    """Names of all attributes that a file reads or calls."""
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_configurations_are_changed_only_with_validation() -> None:
    """pydantic's `model_copy(update=...)` and `model_construct` accept invalid values: use `changed`."""
    unchecked = {"model_copy", "model_construct"}
    assert [str(path) for path in (*FILES, *OTHER_FILES) if attributes(path) & unchecked] == []
    assert "changed" in attributes(REPOSITORY / "orchestration" / "presets.py")


def writes_by_hand(path: Path) -> set[str]:
    """Calls that write a file in place: if the process is killed, the file is incomplete."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [arg.value for arg in given if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opens = name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
        if name in ("write_text", "write_bytes") or opens:
            found.add(ast.unparse(node)[:80])
    return found


ORCHESTRATION = sorted((REPOSITORY / "orchestration").rglob("*.py"))


@pytest.mark.parametrize("path", ORCHESTRATION, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_one_file_writes_the_files_of_runs(path: Path) -> None:
    if path.relative_to(REPOSITORY).as_posix() == "orchestration/records/files.py":
        assert writes_by_hand(path)
    else:
        assert not writes_by_hand(path), "write it with a function of orchestration/records/files.py"
