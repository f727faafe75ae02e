"""The precision of a run's networks: `auto` becomes what the devices do well, and a slow choice is warned of."""

from sepscene.models.precision import Precision, bfloat16_time_ratio, choose
from sepscene.orchestration.config import Experiment

WORTH_A_WORD = 1.1
"""From this ratio of times on, an explicit bfloat16 is warned of."""


def separation_precision(experiment: Experiment) -> Precision:
    """The precision in which separators compute: the one asked for, or what their device does well."""
    asked = experiment.resources
    return choose(asked.separation_precision, asked.separation_gpus, asked.separation_accelerator)


def training_precision(experiment: Experiment) -> Precision:
    """That of the encoder's training."""
    asked = experiment.resources
    return choose(experiment.training.precision, asked.trainer_gpus, asked.trainer_accelerator)


def with_precisions(experiment: Experiment) -> Experiment:
    """The experiment with both precisions chosen, as a run keeps, shows and logs it."""
    chosen = {
        "training.precision": training_precision(experiment),
        "resources.separation_precision": separation_precision(experiment),
    }
    return experiment.changed(chosen)


def slow_precisions(experiment: Experiment) -> list[str]:
    """A sentence for each explicit bfloat16 that is slower than float32 on this machine's CPU."""
    places = {
        "training.precision": (experiment.training.precision, experiment.resources.trainer_gpus),
        "resources.separation_precision": (
            experiment.resources.separation_precision,
            experiment.resources.separation_gpus,
        ),
    }
    on_cpu = [field for field, (precision, gpus) in places.items() if precision == "bfloat16" and not gpus]
    ratio = bfloat16_time_ratio() if on_cpu else 0.0
    if ratio < WORTH_A_WORD:
        return []
    return [
        f"{field} bfloat16: on this CPU a matrix product takes {ratio:.1f} times as long as in float32; `auto` takes "
        "the faster one"
        for field in on_cpu
    ]
