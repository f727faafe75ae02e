"""The command line: help that teaches, and one message with exit code 2 for what a user can fix."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.cli import doctor
from sepscene.orchestration.cli.main import app

COMMANDS = (
    "demo", "scenes", "separator train", "separator import", "separator prefill", "pretrain", "evaluate", "sweep",
    "reproduce", "embed", "report", "doctor", "show", "plan", "submit", "stop", "compare", "ui", "sync", "replay",
    "data audit",
    "store ls", "store verify", "store gc", "encoder import", "encoder export", "cluster check",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
    assert f"sepscene {command}" in " ".join(result.output.split()), "the help has no example"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "table9"], "there is no experiment 'table9'"),
        (["pretrain", "demo", "--scale", "huge"], "--scale: there is no scale 'huge'; known are mini"),
        (["pretrain", "demo", "--set", "objective.temperature"], "must look like field=value"),
        (["pretrain", "demo", "--set", "objective.temperature=-1"], "greater than 0"),
        (["pretrain", "nowhere.yaml"], "does not exist"),
        (["pretrain", "demo", "--storage", "s3://bucket/runs"], "runs cannot live at s3://.*store.uri"),
        (["sweep", "demo", "--over", "alpha=0,1", "--storage", "gs://bucket/runs"], "runs cannot live at gs://"),
        (["submit", "pretrain", "demo", "--storage", "s3://bucket/runs"], "every node mounts"),
        (["sweep", "demo"], "nothing to sweep over"),
        (["sweep", "demo", "--over", "temprature=1,2"], "did you mean objective.temperature"),
        (["sweep", "demo", "--over", "alpha=0,high"], "alpha"),
        (["report", "test"], "test: there is no such run .did you mean tests"),
        (["sync", "nowhere"], "nowhere: there is no such run"),
        (["ui", "nowhere"], "nowhere: there is no such run"),
        (["compare", "tests"], "takes two runs"),
        (["evaluate", "nowhere"], "there is no such run"),
        (["pretrain", "demo", "--set", "separator.checkpoints={S2: nowhere, N: nowhere}"], "processor S2: nowhere"),
        (["embed", "nowhere", "x.wav", "--out", "x.npy"], "nowhere"),
        (["separator", "prefill", "table2/mix-mix"], "separates nothing"),
        (["data", "audit", "nowhere", "--format", "esc50"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SepsceneError), result.output
    with pytest.raises(SepsceneError, match=says):
        raise result.exception


@pytest.mark.parametrize(("check", "name"), [(doctor._torch, "torch"), (doctor._ray, "ray")])
def test_the_doctor_names_a_package_that_is_missing(
    check: Callable[[], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: importlib.metadata.version(f"no-{name}"))
    with pytest.raises(RuntimeError, match=f"^{name} is not installed; run `make setup`"):
        check()


@pytest.mark.slow
def test_the_process_ends_with_two_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sepscene", "pretrain", "demo", "--set", "objective.temperature=-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and "objective.terms.similarity.temperature" in done.stderr
    )


def test_doctor_measures_the_folder_that_a_run_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the system's folder for temporary files, which alone would be short enough."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with TemporaryDirectory(prefix=20 * "t", dir="/tmp") as folder:
        assert len(folder) < 39
        monkeypatch.setattr("tempfile.tempdir", folder)
        with pytest.raises(SepsceneError, match=rf"{folder}/sepscene-\d+, has \d+ bytes.* set RAY_TMPDIR"):
            doctor._temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/" + 39 * "t")
    with pytest.raises(SepsceneError, match="set RAY_TMPDIR to a shorter path"):
        doctor._temp_folder()


def test_separators_of_another_rate_are_refused_before_anything_starts(tmp_path: Path) -> None:
    separator = TDCNpp(TDCNppConfig.tiny(sample_rate=8000))
    save_separator(separator, tmp_path / "S2", {})
    change = f"separator.checkpoints={{S2: {tmp_path / 'S2'}, N: {tmp_path / 'S2'}}}"
    result = CliRunner().invoke(app, ["pretrain", "demo", "--storage", str(tmp_path / "runs"), "--set", change])
    assert isinstance(result.exception, SepsceneError)
    with pytest.raises(SepsceneError, match=r"processor S2 .* works at 8000 Hz but audio.sample_rate is 16000 Hz"):
        raise result.exception
    assert not (tmp_path / "runs").exists()


def test_show_prints_what_pretrain_reads(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["show", "table4/S2+N/simclr-cp", "--scale", "paper"])
    assert shown.exit_code == 0
    (tmp_path / "mine.yaml").write_text(shown.output)
    again = CliRunner().invoke(app, ["show", str(tmp_path / "mine.yaml")])
    assert again.output == shown.output


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_chinese_root_where_the_locale_is_ascii(tmp_path: Path) -> None:
    """The name is UTF-8, whatever the locale says; before, it was refused as a name that is not."""
    root = tmp_path / "日本"
    root.mkdir()
    soundfile.write(root / "a.wav", np.linspace(-0.5, 0.5, 16_000), 16_000)
    command = [sys.executable, "-m", "sepscene", "data", "audit", "日本", "--format", "directory"]
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ascii_only, capture_output=True, timeout=200)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "clips       1, readable 1" in said
