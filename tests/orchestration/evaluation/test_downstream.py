"""Downstream tasks, end to end on small synthetic ones: layouts, metrics, tables and commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from sepscene.augment.audio import ClipError, read_audio
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, save_encoder
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.evaluation.downstream import TaskResult, embed_sound, read_results
from sepscene.orchestration.reports.task_table import csv_table, latex_table
from sepscene.tasks.datasets.downstream import Event, Sound, Task, read_task
from sepscene.tasks.datasets.manifest import ManifestError
from sepscene.tasks.evaluation.downstream import Rows, score_task, segment_f1, targets_at
from sepscene.tasks.evaluation.metrics import mean_average_precision
from sepscene.tasks.evaluation.probes import PENALTIES
from sepscene.tasks.evaluation.settings import ScoringSettings

RATE = 16_000
TONES = {"low": 300.0, "high": 3000.0}


def tone(label: str, seconds: float, seed: int) -> np.ndarray:
    """A tone with the frequency of the label, plus weak noise."""
    draws = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * TONES[label] * time + draws.uniform(0, 6)) + 0.01 * draws.standard_normal(len(time))


def write_esc50(root: Path) -> None:
    """Two classes in three folds, four clips each."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows = [(f"{fold}-{label}-{n}.wav", fold, label) for fold in (1, 2, 3) for label in TONES for n in range(2)]
    for seed, (name, _, label) in enumerate(rows):
        soundfile.write(root / "audio" / name, tone(label, 1.0, seed), RATE)
    lines = ["filename,fold,category", *(f"{name},{fold},{label}" for name, fold, label in rows)]
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")


def write_hear_events(root: Path) -> None:
    """An event task: each sound is silent except for one tone from 0.5 to 1.5 s."""
    metadata = {
        "task_name": "tones", "version": "v1", "embedding_type": "event", "prediction_type": "multilabel",
        "split_mode": "trainvaltest",
    }  # fmt: skip
    root.mkdir()
    (root / "task_metadata.json").write_text(json.dumps(metadata))
    (root / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,high\n")
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        folder = root / "16000" / split
        folder.mkdir(parents=True)
        entries = {}
        for n in range(count):
            label = list(TONES)[n % 2]
            wave = np.zeros(2 * RATE)
            wave[RATE // 2 : RATE // 2 + RATE] = tone(label, 1.0, n)
            soundfile.write(folder / f"{n}.wav", wave, RATE)
            entries[f"{n}.wav"] = [{"label": label, "start": 500.0, "end": 1500.0}]
        (root / f"{split}.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle") / "mine"
    trunk = Cnn14Config(widths=(4, 4, 8, 8, 16, 16), embedding_dim=8)
    save_encoder(Encoder(EncoderConfig(trunk=trunk)), folder, {})
    return folder


def test_targets_include_the_start_of_an_event_and_exclude_its_end() -> None:
    events = (Event("a", 0.1, 0.2), Event("b", 0.15, 0.3))
    targets_NK = targets_at(events, np.array([0.05, 0.1, 0.15, 0.2, 0.3]), ("a", "b"))
    assert targets_NK.T.astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_segments_join_their_timestamps() -> None:
    targets = np.array([[1, 0], [0, 0], [0, 1], [0, 0]], bool)
    predicted = np.array([[0, 0], [1, 0], [1, 0], [0, 0]], bool)
    # Segments 0 and 1: truth {0}, {1}; predicted {0}, {0}: one true positive, one false positive, one miss.
    assert segment_f1(targets, predicted, np.array([0, 0, 1, 1])) == pytest.approx(0.5)


@pytest.mark.slow
def test_metrics_over_folds_are_means_of_scikit_learns() -> None:
    draws = np.random.default_rng(0)
    label_N = np.arange(60) % 3
    h_ND = (np.eye(3)[label_N] + 0.7 * draws.standard_normal((60, 3))).astype(np.float32)
    fold_N = np.array([str(n // 20) for n in range(60)])
    sounds = tuple(Sound(f"{n}.wav", fold_N[n], (str(label_N[n]),)) for n in range(60))
    task = Task("synthetic", "scene", False, ("0", "1", "2"), sounds, folded=True)
    targets_NK = np.eye(3, dtype=bool)[label_N]
    metrics = score_task(task, Rows(h_ND, targets_NK, np.arange(60), np.zeros(60)), ScoringSettings(neighbours=5))
    unit_ND = h_ND / np.linalg.norm(h_ND, axis=1, keepdims=True)
    accuracies = []
    precisions = []
    for fold in "012":
        test_N = fold_N == fold
        votes = []
        for row in unit_ND[test_N]:
            similarity = unit_ND[~test_N] @ row
            nearest = np.argsort(-similarity)[:5]
            weight = np.exp((similarity[nearest] - similarity[nearest].max()) / 0.07)
            votes.append(weight @ targets_NK[~test_N][nearest] / weight.sum())
        accuracies.append(accuracy_score(label_N[test_N], np.argmax(votes, axis=1)))
        precisions.append(average_precision_score(targets_NK[test_N], np.array(votes), average="macro"))
    assert metrics["knn_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert metrics["knn_map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    linear = []
    for fold in "012":
        test_N = fold_N == fold
        ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES, alpha_per_target=True))
        scores_NK = ridge.fit(h_ND[~test_N].astype(np.float64), targets_NK[~test_N].astype(float)).predict(h_ND[test_N])
        linear.append([
            accuracy_score(label_N[test_N], scores_NK.argmax(axis=1)),
            average_precision_score(targets_NK[test_N], scores_NK, average="macro"),
        ])  # fmt: skip
    assert metrics["linear_accuracy"] == pytest.approx(np.mean(linear, axis=0)[0], abs=1e-12)
    assert metrics["linear_map"] == pytest.approx(np.mean(linear, axis=0)[1], abs=1e-9)
    assert {f"{probe}_{metric}" for probe in ("linear", "shallow", "knn") for metric in ("map", "accuracy")} == set(
        metrics
    )


def test_classes_without_a_positive_do_not_count() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], bool)
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.1, 0.8, 0.3]])
    found = mean_average_precision(scores, targets).value
    assert found == pytest.approx(average_precision_score(targets[:, :2], scores[:, :2]))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_commands_evaluate_and_compare(bundle: Path, tmp_path: Path) -> None:
    write_esc50(tmp_path / "esc")
    write_hear_events(tmp_path / "hear")
    out = tmp_path / "results"
    tasks = ["--task", f"esc50:{tmp_path / 'esc'}", "--task", f"hear:{tmp_path / 'hear'}"]
    done = CliRunner().invoke(app, ["evaluate", str(bundle), *tasks, "--out", str(out)])
    assert done.exit_code == 0, done.output
    results = {result.task: result for result in read_results(out)}
    assert set(results) == {"esc50-esc", "tones-v1"}
    # Even a random encoder separates a low tone from a high one.
    assert results["esc50-esc"].metrics["linear_accuracy"] == 1.0
    assert results["tones-v1"].sounds == 8 and results["tones-v1"].metrics["shallow_map"] > 0.6
    assert (
        CliRunner().invoke(app, ["evaluate", str(bundle), *tasks[:2], "--out", str(out), "--name", "again"]).exit_code
        == 0
    )
    table = tmp_path / "table.csv"
    latex = tmp_path / "table.tex"
    compared = CliRunner().invoke(app, ["compare", "--tasks", str(out), "--csv", str(table), "--latex", str(latex)])
    assert compared.exit_code == 0, compared.output
    header, *rows = csv.reader(table.read_text().splitlines())
    assert header == ["task", "metric", "again", "mine"]
    assert ["esc50-esc", "linear_accuracy", "1.000", "1.000"] in rows
    assert r"\textbf{1.000}" in latex.read_text()


@pytest.mark.slow
def test_a_sound_that_cannot_be_read_is_named_and_left_out(bundle: Path, tmp_path: Path) -> None:
    write_esc50(tmp_path / "esc")
    (tmp_path / "esc" / "audio" / "1-low-0.wav").write_bytes(b"no sound")
    command = ["evaluate", str(bundle), "--task", f"esc50:{tmp_path / 'esc'}", "--out", str(tmp_path / "results")]
    assert CliRunner().invoke(app, command).exit_code == 3
    (result,) = read_results(tmp_path / "results")
    assert result.sounds == 11 and [Path(uri).name for uri in result.left_out] == ["1-low-0.wav"]


def test_a_sound_is_embedded_from_its_offset_to_its_end(bundle: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "a.wav")
    soundfile.write(file, np.concatenate([tone("low", 1.0, 0), tone("high", 1.0, 1)]), RATE)
    encoder = load_encoder(bundle)
    task = Task("t", "scene", False, ("low",), (Sound(file, "train"), Sound(file, "test")), folded=False)
    first, last = (
        embed_sound(encoder, Sound(file, "test", ("low",), (), *part), task)[0] for part in ((0.0, 1.0), (1.0,))
    )
    wave_2T = torch.from_numpy(read_audio(file, RATE).reshape(2, RATE))
    np.testing.assert_allclose(np.concatenate([first, last]), encoder(wave_2T).numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ClipError, match="has no samples from 2 s on"):
        embed_sound(encoder, Sound(file, "test", (), (), 2.0), task)


def test_an_unknown_device_is_refused(bundle: Path, tmp_path: Path) -> None:
    for device in ("warp", "cuda:99"):
        words = ["evaluate", str(bundle), "--task", "esc50:x", "--out", str(tmp_path), "--device", device]
        refused = CliRunner().invoke(app, words).exception
        assert isinstance(refused, SepsceneError) and f"--device {device}: torch" in str(refused)


def test_tasks_with_the_same_name_are_refused(bundle: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_esc50(tmp_path / folder / "ESC-50")
    tasks = [word for folder in ("a", "b") for word in ("--task", f"esc50:{tmp_path / folder / 'ESC-50'}")]
    done = CliRunner().invoke(app, ["evaluate", str(bundle), *tasks, "--out", str(tmp_path / "results")])
    assert "two tasks are called esc50-ESC-50" in str(done.exception)


def test_the_result_of_another_encoder_of_the_same_name_is_kept(bundle: Path, tmp_path: Path) -> None:
    """The encoders of two runs can have the same name, such as RUN/encoder."""
    write_esc50(tmp_path / "esc")
    held = TaskResult(encoder="mine", digest="0", task="esc50-esc", metrics={"linear_map": 1.0}, sounds=1, left_out={})
    (tmp_path / "esc50-esc--mine.json").write_text(held.model_dump_json())
    words = ["evaluate", str(bundle), "--task", f"esc50:{tmp_path / 'esc'}", "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, SepsceneError) and "another encoder (named mine): give this one another --name" in str(
        refused
    )
    assert read_results(tmp_path) == [held]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda root: (root / "labelvocabulary.csv").unlink(), "labelvocabulary.csv"),
        (lambda root: (root / "test.json").unlink(), "must be named"),
        (lambda root: (root / "train.json").write_text('{"../x.wav": []}'), "is outside of"),
        (lambda root: (root / "train.json").write_text('{"0.wav": [{"label": "low"}]}'), "malformed"),
        (lambda root: (root / "task_metadata.json").write_text("{}"), "task_name|embedding_type"),
    ],
)
def test_a_damaged_task_is_refused(spoil, why: str, tmp_path: Path) -> None:
    write_hear_events(tmp_path / "hear")
    spoil(tmp_path / "hear")
    with pytest.raises(ManifestError, match=why):
        read_task(f"hear:{tmp_path / 'hear'}")


def test_tables_escape_names_and_leave_missing_cells_empty() -> None:
    results = [
        TaskResult(encoder="a_1", digest="", task="t%", metrics={"linear_map": 0.5}, sounds=1, left_out={}),
        TaskResult(encoder="b", digest="", task="u", metrics={"linear_map": 0.25}, sounds=1, left_out={}),
    ]
    assert csv_table(results).splitlines()[1:] == ["t%,linear_map,0.500,", "u,linear_map,,0.250"]
    assert r"t\% & linear\_map & \textbf{0.500} & -- \\" in latex_table(results)


def test_a_metric_of_another_version_is_not_shown() -> None:
    metrics = {"linear_map": 0.5, "linear_accuracy": 0.25, "linear_onset": 1.0}
    result = TaskResult(encoder="a", digest="", task="t", metrics=metrics, sounds=1, left_out={})
    assert csv_table([result]).splitlines()[1:] == ["t,linear_accuracy,0.250", "t,linear_map,0.500"]


def test_the_best_values_of_a_row_are_bold_in_latex_also_with_ties() -> None:
    reached = {"a^1": 0.41238, "b~2": 0.41191, r"c\3": 0.2}
    results = [
        TaskResult(encoder=name, digest="", task="t", metrics={"linear_map": value}, sounds=1, left_out={})
        for name, value in reached.items()
    ]
    assert [line.rstrip("\\ ") for line in latex_table(results).splitlines()] == [
        r"\begin{tabular}{llrrr}",
        r"\toprule",
        r"Task & Metric & a\textasciicircum 1 & b\textasciitilde 2 & c\textbackslash 3",
        r"\midrule",
        r"t & linear\_map & \textbf{0.412} & \textbf{0.412} & 0.200",
        r"\bottomrule",
        r"\end{tabular}",
    ]
