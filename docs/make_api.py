"""Write the API reference from the docstrings: one Markdown page for each module, and an index.

    python docs/make_api.py [OUT]        # build/api by default; not committed
    python docs/make_api.py --check      # lists every public name without a docstring, writes nothing

Reads the sources and imports nothing, so it needs neither Ray nor torch.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("sepscene", "models", "augment", "tasks", "orchestration", "clusters")
Callable = ast.FunctionDef | ast.AsyncFunctionDef


def main(arguments: list[str]) -> int:
    """Write the reference, or with --check list the names without a docstring; returns the exit code."""
    modules = dict(read_modules(REPOSITORY))
    if arguments == ["--check"]:
        classes = classes_of(modules.values())
        missing = [f"{module}: {name}" for module, tree in modules.items() for name in undocumented(tree, classes)]
        print("\n".join(missing) or "every public name has a docstring")
        return bool(missing)
    out = Path(arguments[0]) if arguments else REPOSITORY / "build" / "api"
    out.mkdir(parents=True, exist_ok=True)
    for name, tree in modules.items():
        (out / f"{name}.md").write_text(page(name, tree), encoding="utf-8")
    (out / "index.md").write_text(index(modules), encoding="utf-8")
    print(f"{len(modules)} modules in {out}")
    return 0


def read_modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module of `FOLDERS` that is not empty: its name and its syntax tree."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if folder == "sepscene" else ("sepscene", *parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if (tree := ast.parse(path.read_text(encoding="utf-8"))).body:
                yield name, tree


def index(modules: dict[str, ast.Module]) -> str:
    """One line for each module: its link and the first line of its docstring."""
    lines = ["# Sepscene: API reference", ""]
    for name, tree in modules.items():
        if "." not in name:
            lines += ["", f"## {name}", ""]
        summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"- [`{name}`]({name}.md): {summary}")
    return "\n".join(lines) + "\n"


def page(name: str, tree: ast.Module) -> str:
    """The reference of one module: its docstring, then its public constants, functions and classes in order."""
    blocks = [f"# `{name}`", prose(ast.get_docstring(tree))]
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, Callable) and is_public(node.name):
            blocks += [f"## `{node.name}`", signature(node), prose(ast.get_docstring(node))]
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            blocks += class_blocks(node)
        else:
            blocks += constant_blocks("##", node, following)
    return "\n\n".join(block for block in blocks if block) + "\n"


def class_blocks(node: ast.ClassDef) -> list[str]:
    """A class: its bases, docstring, fields, public methods and constants."""
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    blocks = [f"## class `{node.name}`" + (f" ({bases})" if bases else ""), prose(ast.get_docstring(node))]
    if rows := [field_row(item) for item in node.body if isinstance(item, ast.AnnAssign)]:
        blocks.append("\n".join(["| Field | Type | Default | |", "|---|---|---|---|", *rows]))
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, Callable) and (is_public(item.name) or item.name == "__call__"):
            documented = prose(ast.get_docstring(item))
            blocks += [f"### `{node.name}.{item.name}`", signature(item), documented]
        elif isinstance(item, ast.Assign):
            blocks += constant_blocks("###", item, following, f"{node.name}.")
    return blocks


def constant_blocks(heading: str, node: ast.stmt, following: ast.stmt | None, prefix: str = "") -> list[str]:
    """A constant and the text that follows it; nothing if `node` is no public constant or has no text."""
    constant = constant_name(node)
    words = text_of(following)
    return [f"{heading} `{prefix}{constant}`", prose(words)] if constant and words else []


def field_row(node: ast.AnnAssign) -> str:
    """A table row for a field of a dataclass or a pydantic model, with the default and description of `Field(...)`."""
    default = ""
    words = ""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Field":
        options = {option.arg: option.value for option in node.value.keywords}
        if node.value.args:
            default = ast.unparse(node.value.args[0])
        elif factory := options.get("default_factory"):
            default = f"{ast.unparse(factory)}()"
        words = " ".join(str(ast.literal_eval(options["description"])).split()) if "description" in options else ""
    elif node.value is not None:
        default = ast.unparse(node.value)
    cells = (ast.unparse(node.target), ast.unparse(node.annotation), default)
    quoted = [f"`{cell}`".replace("|", "\\|") if cell else "" for cell in cells]
    return f"| {' | '.join(quoted)} | {words.replace('|', chr(92) + '|')} |"


def signature(node: Callable) -> str:
    """The signature as a code block; properties without parentheses."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if "property" in decorators:
        return f"```python\n{node.name}{returns.replace(' ->', ':')}\n```"
    call = f"{node.name}({ast.unparse(node.args)}){returns}"
    if len(call) > 100:
        inner = ",\n    ".join(split_arguments(ast.unparse(node.args)))
        call = f"{node.name}(\n    {inner},\n){returns}"
    return f"```python\n{call}\n```"


def split_arguments(text: str) -> list[str]:
    """Split the text of an argument list at the commas outside of all brackets."""
    parts = [""]
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: sections such as Args and Raises become lists."""
    lines = []
    section = False
    for line in (docstring or "").splitlines():
        if line.rstrip() in ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:"):
            lines += ["", f"**{line.strip()[:-1]}**", ""]
            section = True
        elif section and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        elif section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip()


def undocumented(tree: ast.Module, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Public functions, classes and methods without a docstring, and the module itself if it has none.

    A method that overrides a documented one needs none. `classes` are all classes of the project by name.
    """
    if ast.get_docstring(tree) is None and tree.body:
        yield "the module"
    for node in tree.body:
        if isinstance(node, Callable | ast.ClassDef) and is_public(node.name):
            if ast.get_docstring(node) is None:
                yield node.name
            for item in node.body if isinstance(node, ast.ClassDef) else ():
                missing = isinstance(item, Callable) and is_public(item.name) and ast.get_docstring(item) is None
                # `forward` is documented by its class.
                if missing and item.name != "forward" and not is_inherited(item.name, node, classes):
                    yield f"{node.name}.{item.name}"


def classes_of(trees: Iterable[ast.Module]) -> dict[str, ast.ClassDef]:
    """All classes of the modules, by name."""
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def is_inherited(method: str, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether one of the base classes, or of their base classes, has a docstring for the method."""
    bases = [classes[name] for name in map(ast.unparse, node.bases) if name in classes]
    return any(
        is_inherited(method, base, classes)
        or any(isinstance(item, Callable) and item.name == method and ast.get_docstring(item) for item in base.body)
        for base in bases
    )


def is_public(name: str) -> bool:
    """Whether a name has no leading underscore."""
    return not name.startswith("_")


def constant_name(node: ast.stmt) -> str:
    """The public name that a module-level assignment binds; an empty string for anything else."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) and is_public(target.id) else ""


def text_of(node: ast.stmt | None) -> str:
    """The string literal below a constant, which is its docstring; an empty string for anything else."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
