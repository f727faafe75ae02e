"""The guide to a run's results names every file of its folder and every field of results.json."""

from pathlib import Path

import pytest

from sepscene.orchestration.records.mlflow_names import metric_name
from sepscene.orchestration.records.results import RunResults
from sepscene.orchestration.records.run_folder import Place, RunFolder

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "reading_results.md").read_text()
SCHEMA = RunResults.model_json_schema()
FIELDS = {field for model in (SCHEMA, *SCHEMA["$defs"].values()) for field in model["properties"]}
FILES = {place.name for place in vars(RunFolder).values() if isinstance(place, Place)}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_is_explained(field: str) -> None:
    assert f"`{field}`" in TEXT or f'"{field}"' in TEXT


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_is_explained(name: str) -> None:
    assert f"`{name}`" in TEXT or f"`{name}/`" in TEXT


def test_names_in_mlflow_are_those_of_the_code() -> None:
    for name in ("shallow_map", "linear_map", "untrained/shallow_map"):
        assert f"`{metric_name(name)}`" in TEXT
    for name in ("loss", "effective_rank", "learning_rate", "rows_per_second", "balance/waiting_share"):
        assert f"`{metric_name(name).partition('/')[0]}/…`" in TEXT
