"""What MLflow, model cards and the terminal say about an experiment."""

from typing import Any

from sepscene.orchestration.config import Experiment, Objective
from sepscene.orchestration.records.environment import commit


def tags_of(experiment: Experiment) -> dict[str, str]:
    """The tags by which a run is found in MLflow."""
    return {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "table_row": experiment.table_row or "",
        "combination": "+".join(experiment.views.combination),
        "pair": experiment.views.pair,
        "temperature": str(experiment.objective.temperature),
        "alpha": str(experiment.objective.alpha),
        "seed": str(experiment.seed),
        "digest": experiment.digest(),
        "git_commit": commit() or "unknown",
        "mlflow.source.git.commit": commit() or "unknown",
        "mlflow.source.name": "sepscene",
    }


def losses_of(objective: Objective) -> str:
    """What an encoder was trained with, in words for its card."""
    learned = ", learned" if objective.learn_temperature else ""
    nt_xent = f"NT-Xent (tau {objective.temperature:g}{learned})"
    triplet = f"triplet ({objective.triplet_margin:g})"
    coincidence = f" + {objective.alpha:g} coincidence" if objective.alpha else ""
    return (triplet if objective.similarity == "triplet" else nt_xent) + coincidence


def in_words(experiment: Experiment) -> str:
    """One sentence: name, scale, seed, views and losses."""
    views = experiment.views
    what = f"{experiment.name}, scale {experiment.scale}, seed {experiment.seed}"
    separated = f" of {'∨'.join(views.combination)}" if views.separates else ""
    return f"{what}: {views.pair} views{separated}, {losses_of(experiment.objective)}."


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
