"""What MLflow, model cards and the terminal say about an experiment."""

from typing import Any

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.environment import commit


def tags_of(experiment: Experiment) -> dict[str, str]:
    """The tags by which a run is found in MLflow."""
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


def in_words(experiment: Experiment) -> str:
    """One sentence: name, scale, seed, views and losses."""
    views = experiment.views
    what = f"{experiment.name}, scale {experiment.scale}, seed {experiment.seed}"
    separated = f" of {'∨'.join(views.combination)}" if views.separates else ""
    return f"{what}: {views.pair} views{separated}, {experiment.objective.described}."


def flat(experiment: Experiment) -> dict[str, Any]:
    """The configuration as dotted parameters for MLflow."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", experiment.model_dump(mode="json"))
    return flat
