"""Descriptions of an experiment for MLflow, model cards and the terminal."""

from typing import Any

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.environment import commit


def tags_of(experiment: Experiment) -> dict[str, str]:
    """The tags of a run in MLflow, for searching."""
    return {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "table_row": experiment.table_row or "",
        "combination": "+".join(experiment.views.combination),
        "pair": experiment.views.pair,
        "temperature": str(experiment.objective.temperature or ""),
        "alpha": str(experiment.objective.alpha),
        "seed": str(experiment.seed),
        "digest": experiment.digest(),
        "git_commit": commit() or "unknown",
        "mlflow.source.git.commit": commit() or "unknown",
        "mlflow.source.name": "sepscene",
    }


def summary_of(experiment: Experiment) -> str:
    """One sentence: name, scale, seed, views and losses."""
    views = experiment.views
    name = f"{experiment.name}, scale {experiment.scale}, seed {experiment.seed}"
    separated = f" of {'∨'.join(views.combination)}" if views.separates else ""
    return f"{name}: {views.pair} views{separated}, {experiment.objective.description}."


def parameters_of(experiment: Experiment) -> dict[str, Any]:
    """The configuration as parameters for MLflow, with dotted names."""
    parameters: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, inner)
        else:
            parameters[prefix] = value

    flatten("", experiment.model_dump(mode="json"))
    return parameters
