"""Scale mini: views from stored log-mels match those from sound, studies can be interrupted, no setting is ignored."""

import errno
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.study import trained
from sepscene.augment.audio import read_clip
from sepscene.augment.augmentations.augmentation import Augmenter
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.synthetic.scenes import PROFILES, generate_scene, profile_of_length, write_scenes
from sepscene.augment.views import from_pcm
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import load_separator, save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.data import LogMelStore, prepare_stores
from sepscene.orchestration.mini.study import _check_same_study, read_records, run_study
from sepscene.orchestration.mini.training import MiniTrainer, ViewCrops, check_supported, embed
from sepscene.orchestration.mini.trial import perceptron_maps, run_trial, score
from sepscene.orchestration.presets import resolve, shipped_ladder
from sepscene.orchestration.records.files import claimed
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.sweep_folder import StudyData, StudyFolder
from sepscene.orchestration.training.row_draws import DrawRows
from sepscene.tasks.datasets.readers import read_manifest
from sepscene.tasks.evaluation.metrics import NothingToEvaluate
from sepscene.tasks.evaluation.scores import score_embeddings
from sepscene.tasks.losses.mixit import si_sdr_improvement

CHANGES = (
    "audio.clip_seconds=2.0",
    "training.epochs=2",
    "training.global_batch=16",
    "training.service_rows=16",
    "evaluation.scoring.shallow_epochs=2",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of scenes of 2 s with a second background, and the folder of an untrained separator."""
    folder = tmp_path_factory.mktemp("mini")
    config = PROFILES["recurring"].changed({"clip_seconds": 2.0})
    for split in ("train", "test"):
        write_scenes(folder / "scenes", 16, 0, split, config, False, 2)
    torch.manual_seed(0)
    network = TDCNppConfig(
        basis="stft", window_samples=512, hop_samples=256, bottleneck=8, hidden=8, repeats=1, blocks=2
    )
    save_separator(TDCNpp(network), folder / "N", {"step": 0})
    return folder, str(folder / "N")


def experiment(data: tuple[Path, str], row: str = "table4/N/simclr-cp", *changes: str) -> Experiment:
    folder, separator = data
    names = f"separator.checkpoints={{N: {separator}, S2: {separator}, F: {separator}, S1: {separator}}}"
    return resolve(row, "mini", [*CHANGES, names, f"data.root={folder / 'scenes'}", *changes])


def filled(data: tuple[Path, str], ours: Experiment, root: Path) -> LogMelStore:
    manifest = read_manifest("scenes", str(data[0] / "scenes")).select("train")
    store = LogMelStore(root, ours, manifest)
    store.fill({"N": data[1]}, backgrounds=2)
    return store


def test_views_from_the_store_match_those_of_the_cluster(data: tuple[Path, str], tmp_path: Path) -> None:
    """Same draws, channels and positions; crops start at the nearest frame, and values are float16."""
    ours = experiment(data)
    store = filled(data, ours, tmp_path)
    crops = ViewCrops(ours, store)
    views = crops(np.arange(16))[:2]
    rows = DrawRows(store.manifest.clips, crops.schedule, Ledger(crops.schedule.rows), ours.views)
    make = ViewMaker(ServiceSettings(views=ours.views, audio=ours.audio, checkpoints={"N": data[1]}))
    batch = make(rows({"id": np.arange(16)}))
    for view, name in zip(views, ("view_1", "view_2"), strict=True):
        theirs = store.front_end(torch.from_numpy(from_pcm(batch[name])))
        assert view.shape == theirs.shape == (16, 48, 32)
        inner = view[:, 2:-2]
        other = theirs[:, 2:-2]
        assert float(torch.corrcoef(torch.stack([inner.flatten(), other.flatten()]))[0, 1]) > 0.95
        assert float((inner.mean(dim=(1, 2)) - other.mean(dim=(1, 2))).abs().max()) < 0.1


def test_patches_with_equal_level_use_the_same_store(data: tuple[Path, str], tmp_path: Path) -> None:
    kept = experiment(data)
    store = filled(data, kept, tmp_path)
    ours = kept.changed({"front_end.level": "patch"})
    assert LogMelStore(store.folder.parent, ours, store.manifest).folder == store.folder
    views = ViewCrops(ours, store)(np.arange(16))[:2]
    before = ViewCrops(kept, store)(np.arange(16))[:2]
    for view, loud in zip(views, before, strict=True):
        mean_B, loud_B = ((each.exp() - ours.front_end.floor).mean(dim=(1, 2)) for each in (view, loud))
        assert float(mean_B.std() / mean_B.mean()) < 1e-3 < float(loud_B.std() / loud_B.mean())


def test_a_stored_clip_equals_its_log_mel(data: tuple[Path, str], tmp_path: Path) -> None:
    ours = experiment(data)
    store = filled(data, ours, tmp_path)
    wave_T = read_clip(store.manifest.clips["uri"][3].as_py(), ours.audio)
    expected = store.front_end(torch.from_numpy(wave_T)[None])[0].numpy()
    np.testing.assert_allclose(store.mixtures()[3], expected, atol=5e-3)  # float16, values below 5
    assert np.abs(store.mixtures(1)[3].astype(np.float32) - expected).mean() > 0.05, "another background"


def test_a_disk_without_space_for_the_store_is_reported_before_it_is_filled(
    data: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(SepsceneError, match=r"mixture-0\.npy cannot be created \(No space left on device\)"):
        filled(data, experiment(data), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_exchanged_background_changes_only_the_second_view(data: tuple[Path, str], tmp_path: Path) -> None:
    kept = experiment(data, "table2/mix-mix")
    exchanged = kept.changed({"views.background": "exchanged"})
    store = filled(data, kept, tmp_path)
    one, two = (ViewCrops(ours, store)(np.arange(16)) for ours in (kept, exchanged))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])


def test_the_same_seed_gives_the_same_losses_and_an_exact_ledger(data: tuple[Path, str], tmp_path: Path) -> None:
    ours = experiment(data)
    store = filled(data, ours, tmp_path)
    runs = []
    for _ in range(2):
        trainer = MiniTrainer(ours, store)
        for _ in range(trainer.steps):
            trainer.advance()
        runs.append(trainer)
    assert runs[0].losses == runs[1].losses and runs[0].steps == 2
    assert runs[0].ledger.intervals == [(0, 32)] and set(runs[0].losses) == {
        "similarity",
        "coincidence",
        "gradient_norm",
    }
    assert max(runs[0].losses["gradient_norm"]) < ours.training.clip_gradient_norm, "no gradient is clipped here"


def test_alpha_warms_up(data: tuple[Path, str]) -> None:
    ours = experiment(data, "table4/N/simclr-cp", "objective.alpha_warmup_steps=4")
    assert [ours.objective.weights_at(step)["coincidence"] for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    "change", ["training.microbatch=4", "training.precision=bfloat16", "training.validation_every_steps=1"]
)
def test_unsupported_settings_are_refused(data: tuple[Path, str], change: str, tmp_path: Path) -> None:
    ours = experiment(data, "table4/N/simclr", change)
    with pytest.raises(SepsceneError, match=change.split("=")[0]):
        check_supported(ours)
    with pytest.raises(SepsceneError, match=change.split("=")[0]):
        run_study([experiment(data, "table2/mix-mix"), ours], 1, tmp_path / "study", Console(quiet=True))
    assert not list(tmp_path.iterdir()), "refused before anything is separated"
    with pytest.raises(SepsceneError, match=change.split("=")[0]):  # the loop of the benchmark, before it starts
        trained(ours, read_manifest("scenes", str(data[0] / "scenes")), {}, None)  # type: ignore[arg-type]


def test_augmentations_of_log_mels_are_applied_and_those_of_waveforms_refused(
    data: tuple[Path, str], tmp_path: Path
) -> None:
    ours = experiment(data).changed({"augmentations.crop": {"use": "crop-resize", "probability": 0.5}})
    check_supported(ours)
    store = filled(data, ours, tmp_path)
    trainer = MiniTrainer(ours, store)
    first, second, draws = trainer.crops(np.arange(16))
    specaugment = Augmenter({"specaugment": ours.augmentations["specaugment"]})
    both = specaugment("log-mel", torch.stack((first, second), dim=1), draws)
    expected = Augmenter({"crop": ours.augmentations["crop"]})("log-mel", both, draws)
    assert torch.equal(torch.stack(trainer.inputs({"row": np.arange(16)}), dim=1), expected)
    assert 0 < draws["crop_on"].sum() < 32 and not torch.equal(both, expected)
    with pytest.raises(SepsceneError, match=r"augmentations gain work on waveforms: remove them, or use scale"):
        check_supported(ours.changed({"augmentations.gain": {"use": "gain"}}))


@pytest.mark.slow
def test_an_interrupted_study_continues(data: tuple[Path, str], tmp_path: Path) -> None:
    rows = [experiment(data, row) for row in ("table2/mix-mix", "table4/N/simclr-cp")]
    run_study(rows[:1], 1, tmp_path, Console(quiet=True))
    assert "16 clips of scenes instead of about 2,000,000" in (tmp_path / "report.md").read_text()
    assert {r.row for r in read_records(tmp_path)} == {
        "untrained",
        "table2/mix-mix",
    }
    first = StudyFolder(tmp_path).trial("table2/mix-mix", 0)
    before = first.stat().st_mtime_ns
    with claimed(StudyFolder(tmp_path).running("table4/N/simclr-cp", 0)) as acquired:
        assert acquired
        run_study(rows, 1, tmp_path, Console(quiet=True))
    assert len(read_records(tmp_path)) == 2, "a trial that another process has claimed is skipped"
    run_study(rows, 1, tmp_path, Console(quiet=True))
    assert first.stat().st_mtime_ns == before
    records = {record.row: record for record in read_records(tmp_path)}
    found = records["table4/N/simclr-cp"]
    assert found.ledger.consumed == found.ledger.rows == 32 and len(found.perceptrons) == 5
    assert found.metrics["shallow_map"] == pytest.approx(np.mean(found.perceptrons), abs=1e-4)
    assert 0 <= found.diagnostics["background"] <= 1 and len(found.replicates) == 200
    assert (
        "table2/mix-mix" in (tmp_path / "report.md").read_text() or "mix vs mix" in (tmp_path / "report.md").read_text()
    )
    with pytest.raises(SepsceneError, match=r"other settings \(training"):
        run_study([experiment(data, "table2/mix-mix", "training.epochs=3")], 1, tmp_path, Console(quiet=True))


@pytest.mark.slow
def test_a_study_survives_a_trial_whose_loss_is_not_finite(data: tuple[Path, str], tmp_path: Path) -> None:
    rows = [experiment(data, row, "training.learning_rate=1e30") for row in ("table2/mix-mix", "table4/N/simclr-cp")]
    failed = run_study(rows, 1, tmp_path, Console(quiet=True))
    assert list(failed) == ["table2-mix-mix,seed=0", "table4-N-simclr-cp,seed=0"]
    assert [record.row for record in read_records(tmp_path)] == ["untrained"]
    assert "a loss or gradient that is not finite: lower the learning rate" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("views.tp_delta_seconds=1.0", "views"),
        ("views.background=exchanged", "views"),
        ("encoder.widths=[4, 4, 4, 4, 4, 4]", "encoder"),
        ("objective.temperature=0.1", "objective"),
        ("objective.alpha_warmup_steps=3", "coincidence"),
        ("specaugment.warp_frames=1", "specaugment"),
        ("augmentations.crop={use: crop-resize}", "augmentations"),
    ],
)
def test_a_study_accepts_further_rows_and_refuses_other_settings(
    data: tuple[Path, str], tmp_path: Path, change: str, part: str
) -> None:
    """The settings of coincidence prediction are recorded with the first row that has it."""
    for row in ("table2/mix-mix", "table4/N/simclr-cp", "table2/mix-mix", "table5/d1024"):
        _check_same_study([experiment(data, row)], tmp_path)
    with pytest.raises(SepsceneError, match=rf"other settings \({part};"):
        _check_same_study([experiment(data, "table4/N/simclr-cp", change)], tmp_path)


def test_studies_of_one_storage_share_their_data(data: tuple[Path, str], tmp_path: Path) -> None:
    ours = experiment(data)
    first = prepare_stores([ours], tmp_path, Console(quiet=True))
    before = {path: path.stat().st_mtime_ns for path in StudyData.of(tmp_path).logmels.rglob("*.npy")}
    again = prepare_stores([ours, experiment(data, "table2/mix-mix")], tmp_path, Console(quiet=True))
    assert before and all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert [store.folder for store in first] == [store.folder for store in again]


def test_the_shipped_ladder_is_small_and_complete_and_separates() -> None:
    """Its cards state an improvement of more than 5 dB for S2 on held-out scenes; on a few new ones it comes close."""
    ladder = shipped_ladder()
    assert set(ladder) == {"N", "F", "S1", "S2"}
    size = sum(path.stat().st_size for folder in ladder.values() for path in Path(folder).iterdir())
    assert size < 3_000_000
    found = [read_card(ladder[name]).metadata["held_out_source_improvement_db"] for name in ("N", "F", "S1", "S2")]
    assert found == sorted(found)
    assert found[0] < 0.5 and found[1] > 2.5 and found[3] > 5
    separators = {name: load_separator(folder) for name, folder in ladder.items()}
    gains: dict[str, list[float]] = {name: [] for name in ladder}
    for scene in (generate_scene(5, index, profile_of_length(4.0, "recurring")) for index in range(8)):
        mixture_BT = torch.from_numpy(scene.mixture_T[None])
        source_BKT = torch.from_numpy(scene.sources_ST[None])
        for name, separator in separators.items():
            with torch.inference_mode():
                separated_BST = separator(mixture_BT)
            assert separated_BST.shape == (1, 2, 64_000)
            torch.testing.assert_close(separated_BST.sum(dim=1), mixture_BT, atol=1e-4, rtol=0)
            gains[name].append(float(si_sdr_improvement(mixture_BT, source_BKT, separated_BST)))
    assert abs(mean(gains["N"])) < 1 and min(map(mean, (gains["F"], gains["S1"], gains["S2"]))) > 3, gains


def test_labels_are_treated_as_in_the_usual_evaluation(data: tuple[Path, str], tmp_path: Path) -> None:
    """Unlabelled clips, a class without training clips and a class of all test clips are left out and named."""
    ours = experiment(data)
    labels = {"train": ["a", "b", "a;all", "b;all", "", ""] * 4, "test": ["a;all", "b;all", "all;new", ""] * 4}
    rows = [f"{split}{n}.wav,{label},{split}" for split, of_split in labels.items() for n, label in enumerate(of_split)]
    (tmp_path / "manifest.csv").write_text("\n".join(["uri,labels,split", *rows]))
    manifest = read_manifest("table", str(tmp_path))
    train = manifest.select("train")
    test = manifest.select("test")
    rng = np.random.default_rng(0)
    train_h, test_h = (
        rng.normal(0, 1, (len(part), 6)) + part.targets() @ rng.normal(0, 1, (4, 6)) for part in (train, test)
    )
    scores = score(train_h, train, test_h, test, ours)
    values, replicates_R = perceptron_maps(scores.predictions)
    expected = score_embeddings(train_h, train.targets(), test_h, test.targets(), test.classes, ours.evaluation.scoring)
    assert np.mean(values) == pytest.approx(expected.metrics["shallow_map"].value, rel=1e-12)
    assert len(values) == 5 and replicates_R.shape == (200,)
    notes = "; ".join(scores.notes)
    assert "8 of 24 training clips" in notes and "4 of 16 test clips" in notes
    assert "no positive training clip: new" in notes and "nothing to rank: all" in notes
    (tmp_path / "manifest.csv").write_text("uri,labels,split\na.wav,a,train\nb.wav,b,train\nc.wav,,test\nd.wav,,test\n")
    without = read_manifest("table", str(tmp_path))
    with pytest.raises(NothingToEvaluate, match="0 of 2 test clips have a label"):
        score(train_h[:2], without.select("train"), test_h[:2], without.select("test"), ours)


def test_the_settings_of_the_probes_are_used(
    data: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepscene.tasks.evaluation.probes.LINEAR_CLIPS", 8)  # fewer than 16, so that the seed matters
    plain = experiment(data, "table2/mix-mix")
    ours = plain.changed({"evaluation.scoring.neighbours": 3, "evaluation.scoring.seed": 4})
    train, test = prepare_stores([ours], tmp_path, Console(quiet=True))
    trainer = MiniTrainer(ours, train)
    targets = (train.manifest.targets(), test.manifest.targets())
    by_settings = [
        score_embeddings(embed(trainer, train), targets[0], embed(trainer, test), targets[1], None, settings)
        for settings in (ours.evaluation.scoring, plain.evaluation.scoring)
    ]
    found = run_trial(ours, train, test, untrained=True)
    for name in ("shallow_map", "linear_map", "knn_map"):
        expected, other = (scores.metrics[name].value for scores in by_settings)
        assert found.metrics[name] == round(expected, 5) != round(other, 5)
    assert not any("epochs" in note for note in found.left_out)
