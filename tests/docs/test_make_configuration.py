"""The configuration page matches the fields of the configuration."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from sepscene.orchestration.config import Experiment

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def make_configuration() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_configuration: ModuleType) -> None:
    assert make_configuration.main(["--check"]) == 0, "run python docs/make_configuration.py"


def test_every_field_of_an_experiment_is_there_once(make_configuration: ModuleType) -> None:
    text = make_configuration.page()
    expected = {
        (prefix, make_configuration.chosen_by(model), name)
        for prefix, model in make_configuration.sections_of(Experiment, "")
        for name, field in model.model_fields.items()
        if not make_configuration.inner(field)
    }
    found = []
    for section in text.split("\n## ")[1:]:
        _, prefix, chosen = section.partition("\n")[0].split("`", 2)
        names = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        found += [("" if prefix == "experiment" else prefix, chosen, name) for name in names]
    assert len(found) == len(set(found)) and set(found) == expected


def test_every_table_row_has_five_cells(make_configuration: ModuleType) -> None:
    for line in make_configuration.page().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6, line
