"""The scores of an encoder: on a test split, or cross-validated over the folds of the training clips."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.evaluation.compare import load_predictions
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.tasks.datasets.manifest import Clip, Manifest, make_manifest
from sepscene.tasks.datasets.readers import read_manifest
from sepscene.tasks.evaluation.shortcuts import ClipFeatures
from tests.tasks.datasets.test_public import write

CLASSES = ("Bark", "Guitar", "Rain")

pytestmark = pytest.mark.slow  # imports Ray


def by_folds() -> Experiment:
    changes = {"data.format": "esc50", "data.root": "x", "data.train": ["1", "2"], "data.test": ["folds"]}
    return named_experiment("demo", "tiny").changed({**changes, "evaluation.scoring.bootstrap": 20})


def clips(folds: int, each: int) -> Manifest:
    """`each` clips in every fold, of two classes."""
    rows = [(fold, n) for fold in range(1, folds + 1) for n in range(each)]
    return make_manifest(
        (Clip(f"{fold}-{n}.wav", f"/x/{fold}-{n}.wav", ("ab"[n % 2],), str(fold)) for fold, n in rows), "a test"
    )


def taken(manifest: Manifest, rows: np.ndarray) -> Manifest:
    return replace(manifest, clips=manifest.clips.take(rows))


def test_no_probe_sees_the_labels_of_its_test_fold(tmp_path: Path) -> None:
    """Labels are inverted between the two folds: only a probe that saw its test fold would score well."""
    from sepscene.orchestration.evaluation.embed_manifest import Embeddings
    from sepscene.orchestration.evaluation.scoring import LEAK, score_encoder

    manifest = clips(folds=2, each=40)
    sign = np.array([1.0 if split == "1" else -1.0 for split in manifest.clips["split"].to_pylist()])
    label = manifest.targets()[:, 0] * 2.0 - 1
    h = np.random.default_rng(0).normal(0, 0.1, (80, 4)).astype(np.float32)
    h[:, 0] += label * sign
    embedded = Embeddings(h, manifest, ClipFeatures(h[:, :3], h[:, 3]))
    result = score_encoder("mix-chan", embedded, embedded, by_folds(), tmp_path)
    assert result.metrics["linear_map"].value < 0.4
    assert result.metrics["accuracy"].value < 0.1
    assert result.description.startswith(LEAK)
    predictions = load_predictions(RunFolder(tmp_path).predictions("mix-chan"))
    assert sorted(set(predictions.folds.tolist())) == ["1", "2"]
    assert predictions.clip_ids.tolist() == manifest.clips["clip_id"].to_pylist()
    assert result.diagnostics["background"] > 0.9, "the features are columns of h"


def test_cross_validation_needs_two_folds() -> None:
    with pytest.raises(SepsceneError, match="give at least two"):
        by_folds().changed({"data.train": ["1"]})


def labels(clips: int, most: int, seed: int) -> list[list[str]]:
    """For each clip, one to `most` of the classes."""
    draw = np.random.default_rng(seed)
    return [list(draw.permutation(CLASSES)[: draw.integers(1, most + 1)]) for _ in range(clips)]


def audioset() -> dict[str, str]:
    """60 and 40 segments in two lists; one class of the index occurs in no segment."""
    index = [f"{k},/m/{name},{name}" for k, name in enumerate((*CLASSES, "Silence"))]
    files = {"class_labels_indices.csv": "\n".join(["index,mid,display_name", *index])}
    for seed, (split, clips) in enumerate({"balanced_train": 60, "eval": 40}.items()):
        ids = [f"{split[:2]}{n:09d}" for n in range(clips)]
        mids = [",".join(f"/m/{name}" for name in names) for names in labels(clips, 2, seed)]
        rows = [f'{name}, 30.000, 40.000, "{mid}"' for name, mid in zip(ids, mids, strict=True)]
        files |= {f"{split}_segments.csv": "# YTID\n" + "\n".join(rows)} | {f"audio/{name}.wav": "" for name in ids}
    return files


def fsd50k() -> dict[str, str]:
    """60 development and 40 evaluation clips with one or two labels each."""
    files = {}
    for seed, (part, clips) in enumerate({"dev": 60, "eval": 40}.items()):
        rows = [f'{n},"{",".join(names)}",x,train' for n, names in enumerate(labels(clips, 2, seed))]
        files[f"FSD50K.ground_truth/{part}.csv"] = "\n".join(["fname,labels,mids,split", *rows])
        files |= {f"FSD50K.{part}_audio/{n}.wav": "" for n in range(clips)}
    return files


def esc50() -> dict[str, str]:
    """100 clips in five folds."""
    rows = [f"{n}.wav,{n % 5 + 1},{name}" for n, (name,) in enumerate(labels(100, 1, 0))]
    return {"meta/esc50.csv": "\n".join(["filename,fold,category", *rows])} | {f"audio/{n}.wav": "" for n in range(100)}


def directory() -> dict[str, str]:
    """60 and 40 clips in folders named after split and class."""
    clips = [("train", 60), ("test", 40)]
    return {
        f"{split}/{name}/{n}.wav": ""
        for seed, (split, count) in enumerate(clips)
        for n, (name,) in enumerate(labels(count, 1, seed))
    }


@pytest.mark.parametrize(
    ("layout", "train_splits", "test_splits"),
    [
        (audioset, ["balanced_train"], ["eval"]),
        (fsd50k, ["train"], ["test"]),
        (esc50, ["1", "2", "3", "4", "5"], ["folds"]),
        (directory, ["train"], ["test"]),
    ],
)
def test_public_data_is_evaluated(
    layout: Callable[[], dict[str, str]], train_splits: list[str], test_splits: list[str], tmp_path: Path
) -> None:
    """From the files on disk to the metrics and the table of classes, with embeddings computed from the labels."""
    from sepscene.orchestration.evaluation.embed_manifest import Embeddings
    from sepscene.orchestration.evaluation.scoring import score_encoder

    data = {"format": layout.__name__, "root": write(tmp_path, layout()), "train": train_splits, "test": test_splits}
    evaluated = {"bootstrap": 20, "shallow_hidden": 16, "shallow_epochs": 60, "qbe_clips": 20}
    changes = {f"data.{key}": value for key, value in data.items()}
    experiment = named_experiment("demo", "tiny").changed(
        changes | {f"evaluation.scoring.{key}": value for key, value in evaluated.items()}
    )
    manifest = read_manifest(layout.__name__, str(tmp_path))
    train = manifest.select(*experiment.data.train)
    test = train if experiment.data.by_folds else manifest.select(*experiment.data.test)
    assert (len(train), len(test)) == ((100, 100) if experiment.data.by_folds else (60, 40))
    assert manifest.classes[:3] == CLASSES
    draw = np.random.default_rng(0)
    directions = 2 * draw.standard_normal((len(manifest.classes), 8))

    def embedded(part: Manifest) -> Embeddings:
        readable = np.arange(1, len(part))  # the first clip could not be read
        h = part.targets()[readable] @ directions + 0.5 * draw.standard_normal((len(readable), 8))
        background = draw.standard_normal((len(readable), 6))
        return Embeddings(h.astype(np.float32), taken(part, readable), ClipFeatures(background, h[:, 0]))

    h = [embedded(train)] * 2 if test is train else [embedded(train), embedded(test)]
    result = score_encoder("mix-mix", *h, experiment, tmp_path)
    targets = test.targets()[1:]
    predictions = load_predictions(RunFolder(tmp_path).predictions("mix-mix"))
    assert predictions.clip_ids.tolist() == test.clips["clip_id"].to_pylist()[1:]
    np.testing.assert_array_equal(predictions.targets_BK, targets)

    single = layout in (esc50, directory)
    metrics = {"shallow_map", "linear_map", "knn_map", "qbe_map", "d_prime", "lwlrap", *["accuracy"] * single}
    assert set(result.metrics) == metrics and len(result.replicates) == 20
    assert result.diagnostics["background"] < 0.15 < result.diagnostics["level"], "the level is a dimension of h"
    assert min(result.metrics[name].value for name in metrics - {"qbe_map", "d_prime"}) > 0.9
    assert result.metrics["d_prime"].value > 2.5 and result.metrics["qbe_map"].value > 0.6
    assert [(row.name, row.positives) for row in result.classes] == list(
        zip(manifest.classes, targets.sum(axis=0), strict=True)
    )
    for metric, column in (("shallow_map", "shallow_ap"), ("linear_map", "linear_ap"), ("qbe_map", "qbe_ap")):
        of_class = [getattr(row, column) for row in result.classes if row.positives]
        assert result.metrics[metric].value == pytest.approx(np.mean(of_class))
    without_positives = [row for row in result.classes if not row.positives]
    assert [row.name for row in without_positives] == ["Silence"] * (layout is audioset)
    assert all((row.shallow_ap, row.linear_ap, row.qbe_ap) == (None, None, None) for row in without_positives)
    assert ("left out, no positive test clip: Silence" in result.description) == (layout is audioset)


def test_clips_without_a_label_do_not_count_as_negatives(tmp_path: Path) -> None:
    """Four easy classes, and 40 unlabelled clips of the same sounds in each split: mAP stays 1."""
    from sepscene.orchestration.evaluation.embed_manifest import Embeddings
    from sepscene.orchestration.evaluation.scoring import score_encoder

    rows = [(f"{k}_{n}", "abcd"[k], k, "train" if n < 10 else "test") for k in range(4) for n in range(15)]
    rows += [(f"u{n}_{split}", "", n % 4, split) for n in range(40) for split in ("train", "test")]
    table = "uri,labels,split\n" + "".join(f"{name}.wav,{label},{split}\n" for name, label, _, split in rows)
    manifest = read_manifest("table", write(tmp_path, {"manifest.csv": table}))
    sounds = np.array([k for _, _, k, _ in rows])
    noise = np.random.default_rng(0).normal(0, 0.05, (len(rows), 4))
    h = (np.eye(4)[sounds] + noise).astype(np.float32)
    in_train = np.array([split == "train" for *_, split in rows])
    changes = {"data.format": "table", "data.root": str(tmp_path), "evaluation.scoring.bootstrap": 20}
    experiment = named_experiment("demo", "tiny").changed(changes)
    train = manifest.select("train")
    test = manifest.select("test")
    embedded = [
        Embeddings(h[rows], part, ClipFeatures(h[rows][:, :3], h[rows][:, 3]))
        for rows, part in ((in_train, train), (~in_train, test))
    ]
    result = score_encoder("mix-chan", *embedded, experiment, tmp_path)
    for name in ("shallow_map", "linear_map", "knn_map", "qbe_map"):
        assert result.metrics[name].value == pytest.approx(1.0, abs=1e-12), name
    assert "left out, without a label: 40 of 60 test clips" in result.description

    unlabelled = Embeddings(
        h[:2], taken(test, np.array([20, 21])), np.zeros((2, 3))
    )  # only unlabelled clips could be read
    result = score_encoder("mix-chan", embedded[0], unlabelled, experiment, tmp_path)
    assert result.metrics == {} and "not evaluated, 0 of 2 test clips have a label" in result.description
