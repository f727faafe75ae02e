"""What metrics are called in MLflow, so that a run's first charts are its loss and its mAP.

MLflow shows a section of charts for each name before a slash, sorted, and metrics without a slash behind all of them.
"""

_SECTIONS = {
    "1_loss": ("loss", "mixit_loss", "supervised_loss", "similarity", "coincidence"),
    "2_quality": ("shallow_map", "linear_map", "knn_map", "qbe_map", "validation_knn_map", "lwlrap", "d_prime"),
    "3_representation": (
        "alignment",
        "uniformity",
        "positive_similarity",
        "negative_similarity",
        "effective_rank",
        "attainable_rank",
        "coincidence_accuracy",
        "coincidence_auc",
    ),
    "4_training": ("learning_rate", "gradient_norm", "temperature", "rows", "pairs", "bad", "quarantined"),
    "5_pace": ("examples_per_second", "mixtures_per_second", "rows_per_second", "waiting_share", "mfu"),
}
_SECTION = {name: section for section, names in _SECTIONS.items() for name in names}
_STREAM = ("trainers", "readers", "separation", "store", "views")


def metric_name(name: str) -> str:
    """A metric's name in MLflow.

    Example:
        >>> metric_name("loss"), metric_name("mix-mix/shallow_map"), metric_name("readers/busy")
        ('1_loss/loss', '2_quality/mix-mix/shallow_map', '5_pace/readers_busy')

    Args:
        name: in the records of the run's folder. One that is not known stays as it is.
    """
    first, slash, rest = name.partition("/")
    if name == "balance_seconds":
        return f"6_balance/{name}"
    if first == "balance" and slash:  # the means over the stage; while it runs they have names of their own
        return f"6_balance/{rest}"
    if first in _STREAM and slash:
        return f"5_pace/{first}_{rest}"
    section = _SECTION.get(rest if slash else name.removeprefix("best_"))
    return f"{section}/{name}" if section else name
