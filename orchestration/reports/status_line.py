"""The few words beside a stage's progress: its loss and terms, its pace, and whether the representation is well."""

from collections.abc import Mapping
from typing import Any

_SAID = {
    "loss": "loss {:.2f}",
    "mixit_loss": "loss {:.2f}",
    "supervised_loss": "loss {:.2f}",
    "examples_per_second": "{:.0f}/s",
    "waiting_share": "waiting {:.0%}",
    "separation/busy": "separation {:.0%}",
    "readers/busy": "readers {:.0%}",
    "similarity": "sim {:.2f}",
    "coincidence": "coin {:.2f}",
    "validation_knn_map": "val mAP {:.3f}",
    "effective_rank": "rank {:.0f}",
    "mfu": "MFU {:.0%}",
}
"""Metric -> how it is said, the most telling first."""

BESIDE_THE_BAR = 70
"""Columns of a terminal that the bar, its numbers and its times take."""


class Terms:
    """The latest metrics of a stage in words, as many as fit."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.latest = dict[str, float]()

    def update(self, record: Mapping[str, Any]) -> str:
        """Take in a record of the metrics file; what it does not mention stays as it was."""
        self.latest |= {name: float(record[name]) for name in _SAID if name in record}
        words = ""
        for name, form in _SAID.items():
            if name in self.latest:
                longer = f"{words}  {form.format(self.latest[name])}".strip()
                if words and len(longer) > self.width:
                    break
                words = longer
        return words
