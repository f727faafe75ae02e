"""Labels place the parts of a real run on the right nodes: separators on one node, trainers on another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sepscene.orchestration.config import Experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def outcome(
    nano: Experiment, scenes_dir: Path, ladder: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("placed")
    nano.changed(
        {
            "data.root": str(scenes_dir),
            "separator.checkpoints": ladder,
            "training.epochs": 12,
            "resources.trainer_labels": {"pool": "trainers"},
            "resources.separation_labels": {"pool": "separators"},
        }
    ).save(folder / "experiment.yaml")
    (folder / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.orchestration.runtime.placed_run", str(folder)],
        cwd=ROOT, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def test_separators_and_trainers_are_on_their_nodes_and_every_row_is_consumed(outcome: dict[str, Any]) -> None:
    assert outcome["where"] == {"separation actor": ["separators"], "trainer": ["trainers"]}
    assert outcome["consumed"] == [[0, outcome["rows"]]]


def test_a_stopped_process_of_another_node_is_reported_and_restarted(outcome: dict[str, Any]) -> None:
    events = [event for event in outcome["events"] if "SeparationService of run" in event and "(process " in event]
    assert len(events) == 2, outcome["events"]
    assert all(re.search(r"\(process \d+ on [\d.]+\)", event) for event in events), events
    assert "is stopped, no step for" in events[0] and "it is killed, and Ray starts another" in events[1]


def test_a_label_that_no_node_has_is_refused(outcome: dict[str, Any]) -> None:
    assert "separation actors" in outcome["refusal"]
    assert "no node has these labels" in outcome["refusal"]
    assert "pool=separators" in outcome["refusal"]


def test_a_node_that_does_not_join_in_time_leads_to_an_error(outcome: dict[str, Any]) -> None:
    assert "have not joined within 3 s: no place for 2 trainers (1 CPU, pool=late each)" in outcome["missing_node"]


def test_trials_are_counted_on_the_existing_cluster(outcome: dict[str, Any]) -> None:
    # The head's two CPUs are used by Ray Data's own tasks; four trainers of a quarter CPU fill a node.
    assert outcome["trials"] == 2


def test_every_machine_of_the_cluster_is_sampled(outcome: dict[str, Any]) -> None:
    here, other = outcome["sampled"]
    assert here.endswith("/cpu_utilization_percentage") and other == "system/cpu_utilization_percentage"
