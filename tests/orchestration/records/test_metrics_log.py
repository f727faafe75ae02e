"""The metrics file: no step is lost with a worker group, and a partial line loses only itself."""

from pathlib import Path

from sepscene.orchestration.records.checkpoints import TrainingState, steps_up_to, write_checkpoint
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.metrics_log import append_metrics, recover_metrics
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import CheckpointFolder, RunFolder, checkpoint_name


def steps(run_dir: Path, stage: str) -> list[int]:
    return [int(record["step"]) for record in read_metrics(run_dir) if record["stage"] == stage]


def test_steps_whose_report_was_lost_with_its_workers_are_recovered_from_the_checkpoint(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("pretrain")
    append_metrics(RunFolder(tmp_path).stage("separator"), [{"step": 3, "loss": 9.0}])
    append_metrics(stage, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    recover_metrics(stage, [{"step": 2, "loss": 2.0}, {"step": 3, "loss": 3.0}])
    assert steps(tmp_path, "pretrain") == [1, 2, 3]
    recover_metrics(stage, [{"step": 2, "loss": 2.0}, {"step": 3, "loss": 3.0}])
    assert steps(tmp_path, "pretrain") == [1, 2, 3]


def test_the_steps_of_all_checkpoints_up_to_the_chosen_one_are_recovered(tmp_path: Path) -> None:
    """A controller that hangs before it is killed can lose the reports of several checkpoints."""
    for step in (2, 4, 6, 8):
        known = [{"step": n, "loss": float(n)} for n in (step - 2, step - 1, step) if n]
        write_checkpoint(tmp_path / checkpoint_name(step), TrainingState(step, Ledger(10), {}, known))
    CheckpointFolder(tmp_path / checkpoint_name(2)).steps.write_text("[{")
    found = steps_up_to(tmp_path / checkpoint_name(6))
    assert [int(record["step"]) for record in found] == [2, 3, 4, 5, 6]


def test_steps_are_recovered_into_a_file_that_does_not_exist_yet(tmp_path: Path) -> None:
    recover_metrics(RunFolder(tmp_path).stage("pretrain"), [{"step": 1, "loss": 1.0}])
    assert steps(tmp_path, "pretrain") == [1]


def test_a_partial_line_is_skipped_and_the_lines_after_it_are_kept(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("pretrain")
    append_metrics(stage, [{"step": 1}])
    with stage.run.metrics.open("a") as file:
        file.write('{"stage": "pretrain", "st')
    append_metrics(stage, [{"step": 2}])
    append_metrics(stage, [{"step": 3}])
    assert steps(tmp_path, "pretrain") == [1, 2, 3]
