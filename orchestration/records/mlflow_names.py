"""Names of metrics in MLflow, chosen so that a run's first charts are its loss and its mAP.

MLflow shows one section of charts for each prefix before a slash, in alphabetical order; metrics without one come last.
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
        name: its name in the records of the run's folder. An unknown name is returned unchanged.
    """
    first, slash, rest = name.partition("/")
    if name == "balance_seconds":
        return f"6_balance/{name}"
    if first == "balance" and slash:  # means over the whole stage; during the stage the names have no prefix
        return f"6_balance/{rest}"
    if first in _STREAM and slash:
        return f"5_pace/{first}_{rest}"
    section = _SECTION.get(rest if slash else name.removeprefix("best_"))
    return f"{section}/{name}" if section else name
