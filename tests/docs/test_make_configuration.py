"""The configuration page matches the fields of the configuration and of a sweep."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.sweeps.config import SweepConfig
from tests.docs.test_log import anchor

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "configuration.md").read_text()


@pytest.fixture(scope="module")
def make_configuration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_configuration: ModuleType) -> None:
    assert make_configuration.main(["--check"]) == 0, "run python docs/make_configuration.py"


def sections() -> Iterator[tuple[str, str]]:
    """Heading and text of each section of the page."""
    for section in PAGE.split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        yield heading, text


def documented() -> dict[tuple[str, str], list[str]]:
    """(path, value of `use` or "") -> the fields in its table, or in the table that its section refers to."""
    texts = {anchor(heading): text for heading, text in sections()}
    found = {}
    for heading, text in sections():
        path, *use = re.findall(r"`([^`]+)`", heading) or [heading]
        link = re.search(r"The fields are those of \[.*\]\(#(.+)\)", text)
        text = texts[link.group(1)] if link else text
        key = (path, use[0] if use else "")
        assert key not in found
        found[key] = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    return found


def in_the_schema(schema: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    """(path, value of `use` or "", field) for each field below a node of a JSON schema."""
    if reference := node.get("$ref"):
        yield from in_the_schema(schema, schema["$defs"][reference.rpartition("/")[2]], path)
    for each in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from in_the_schema(schema, each, path)
    if isinstance(node.get("items"), dict):
        yield from in_the_schema(schema, node["items"], f"{path}[N]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from in_the_schema(schema, node["additionalProperties"], f"{path}.NAME")
    fields = node.get("properties", {})
    use = f"use: {fields['use'].get('const', 'package.module:Name')}" if "use" in fields else ""
    for name, field in fields.items():
        yield path, use, name
        yield from in_the_schema(schema, field, f"{path}.{name}".lstrip("."))


@pytest.mark.parametrize(("model", "root"), [(Experiment, "experiment"), (SweepConfig, "sweep")])
def test_every_field_has_a_row_or_a_section(model: type[Experiment] | type[SweepConfig], root: str) -> None:
    found = documented()
    paths = {path for path, _ in found}
    schema = model.model_json_schema()
    expected = set(in_the_schema(schema, schema, ""))
    assert len(expected) > 5
    for path, use, name in expected:
        section = f"{path}.{name}".lstrip(".")
        in_a_row = name in found.get((path or root, use), ())
        assert in_a_row or section in paths, f"{path or root} {use}: {name}"
    for (path, use), names in found.items():
        assert len(names) == len(set(names)), path
        if path == root or path in {each for each, _, _ in expected}:
            inside = {name for each, chosen, name in expected if (each or root, chosen) == (path, use)}
            assert set(names) <= inside, f"{path} {use}"


def test_fields_in_lists_and_dictionaries_are_there() -> None:
    found = documented()
    assert found["views.curriculum[N]", ""] == ["at", "weights"]
    assert found["augmentations.NAME.curriculum[N]", ""] == ["at", "probability"]
    assert "bottleneck" in found["separator.beside.NAME", ""]
    assert found["budget", ""] == ["trials", "hours", "gpu_hours"]


def test_every_field_has_a_meaning() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 180
    for line in rows:
        cells = re.split(r"(?<!\\)\|", line)
        assert len(cells) == 7, line
        meaning = re.sub(r"\[\w+\]", "", cells[5]).strip(" .")
        assert meaning, line


def test_the_glossary_explains_every_mark() -> None:
    glossary = (DOCS / "glossary.md").read_text().partition("## Marks")[2]
    explained = set(re.findall(r"^\| \[(\w+)\] \|", glossary, flags=re.MULTILINE))
    used = set()
    for _, text in sections():
        used |= set(re.findall(r"\[(\w+)[^\]\[]*\](?!\()", re.sub(r"`[^`]*`", "", text)))
    assert used - {"N", "folds", "l"} <= explained
