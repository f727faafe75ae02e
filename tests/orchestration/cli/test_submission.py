"""Commands as jobs: which files are sent, what is resolved before, and which commands are refused."""

from pathlib import Path

import pytest
import typer
import yaml

from sepscene.models.config import SepsceneError
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.cli.submission import submission_of
from sepscene.orchestration.config import load_experiment
from sepscene.orchestration.presets import named_experiment

PROGRAM = typer.main.get_command(app)
SHARED = ("--storage", "/mnt/sepscene/runs")


def test_a_users_experiment_is_resolved_and_sent(tmp_path: Path) -> None:
    named_experiment("demo", "tiny").changed({"seed": 5}).save(tmp_path / "mine.yaml")
    words = ["pretrain", str(tmp_path / "mine.yaml"), "--set", "training.epochs=2", "--run-id", "a", "--no-evaluate"]
    job = submission_of(PROGRAM, words)
    assert job.arguments == ("pretrain", "experiment.yaml", *SHARED, "--run-id", "a", "--resume", "--no-evaluate")
    (tmp_path / "sent.yaml").write_text(job.files["experiment.yaml"])
    sent = load_experiment(tmp_path / "sent.yaml")
    assert (sent.seed, sent.training.epochs, job.metadata["digest"]) == (5, 2, sent.digest())


def test_the_default_scale_of_a_name_is_paper() -> None:
    assert submission_of(PROGRAM, ["separator", "train", "demo"]).metadata["scale"] == "paper"
    job = submission_of(PROGRAM, ["pretrain", "demo", "--scale", "tiny", "--storage", "/nfs/runs"])
    assert job.metadata["scale"] == "tiny" and job.arguments[2:4] == ("--storage", "/nfs/runs")
    job = submission_of(PROGRAM, ["sweep", "demo", "--over", "temperature=0.1,0.2", "--id", "a"])
    assert job.arguments == ("sweep", "demo", "--over", "temperature=0.1,0.2", "--scale", "paper", *SHARED, "--id", "a")


def test_all_files_of_a_sweep_are_sent(tmp_path: Path) -> None:
    named_experiment("demo", "tiny").save(tmp_path / "base.yaml")
    (tmp_path / "mine.yaml").write_text("experiment: base.yaml\nover: {temperature: [0.1, 0.2]}\n")
    job = submission_of(PROGRAM, ["sweep", str(tmp_path / "mine.yaml"), "--id", "tau"])
    assert job.arguments == ("sweep", "sweep.yaml", *SHARED, "--id", "tau") and job.run_id == "tau"
    assert yaml.safe_load(job.files["sweep.yaml"])["experiment"] == "experiment.yaml"
    assert yaml.safe_load(job.files["experiment.yaml"])["name"] == "demo"
    with pytest.raises(SepsceneError, match="put --seeds into the file"):
        submission_of(PROGRAM, ["sweep", str(tmp_path / "mine.yaml"), "--seeds", "2"])


def test_arguments_that_are_not_files_stay_unchanged() -> None:
    job = submission_of(PROGRAM, ["reproduce", "table2", "--seeds", "2", "--id", "first"])
    assert job.arguments == ("reproduce", "table2", "--seeds", "2", "--scale", "paper", *SHARED, "--id", "first")
    job = submission_of(
        PROGRAM, ["embed", "/mnt/sepscene/runs/a", "/mnt/clips", "--out", "/mnt/h.npy", "--actors", "2"]
    )
    assert job.arguments[3:] == ("--out", "/mnt/h.npy", "--actors", "2") and job.files == {}


@pytest.mark.parametrize("words", [["table4/S2+N/simclr-cp"], ["mine.yaml", "--run-id", "a"]])
def test_an_experiment_without_a_command_is_refused_with_an_example(words: list[str]) -> None:
    with pytest.raises(SepsceneError, match=f"sepscene submit pretrain {words[0].split('+')[0]}"):
        submission_of(PROGRAM, words)
    with pytest.raises(SepsceneError, match=r"cannot submit .demo"):
        submission_of(PROGRAM, ["demo"])
