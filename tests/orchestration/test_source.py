"""Custom code is sent to a cluster, with a run and with a submitted job."""

from pathlib import Path

import pytest
import typer
import yaml

from sepscene.models.config import SepsceneError
from sepscene.models.names import trust_code
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.cli.submission import submission_of
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.jobs import staged
from sepscene.orchestration.source import code_to_send
from tests.custom_code import write_package


def test_packages_and_modules_are_sent_unless_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "sentlab", monkeypatch)
    (tmp_path / "single.py").write_text("class Net: ...\n")
    names = ["sentlab.nets:MelNet", "sentlab.nets:WaveNet", "single:Net", "numpy:array", "json:dumps", "nowhere:Net"]
    assert code_to_send([*names, "sepscene.models.encoders.cnn14:Cnn14"]) == [
        tmp_path / "sentlab", tmp_path / "single.py",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["pretrain", "sweep"])
def test_a_submitted_job_contains_the_code_and_the_trust(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    mark = write_package(tmp_path, "joblab", monkeypatch)
    own = nano if command == "sweep" else nano.changed({"encoder.use": "joblab.nets:MelNet"})
    own.save(tmp_path / "own.yaml")
    words = [command, str(tmp_path / "own.yaml")]
    words += ["--over", "encoder.use=cnn14,joblab.nets:MelNet"] if command == "sweep" else []
    with pytest.raises(SepsceneError, match="is code that does not come with"):
        submission_of(typer.main.get_command(app), words)
    trust_code("joblab.nets:MelNet")
    submission = submission_of(typer.main.get_command(app), words)
    assert submission.code == ("joblab.nets:MelNet",)
    assert submission.environment["SEPSCENE_TRUSTED_CODE"] == "joblab.nets:MelNet"
    with staged(submission) as folder:
        assert (folder / "joblab" / "nets.py").read_text() == (tmp_path / "joblab" / "nets.py").read_text()
        assert yaml.safe_load((folder / "experiment.yaml").read_text())["name"] == "nano"
    assert not mark.exists()
