"""An encoder's judgement from embeddings: a test split, or cross-validation over the folds of the training clips."""

from pathlib import Path

import numpy as np
import pytest

from models.config import SepsceneError
from orchestration.compare import evidence_path, load_evidence
from orchestration.config import Experiment
from orchestration.experiments import named_experiment
from tasks.listing import Clip, Manifest, make_manifest

pytestmark = pytest.mark.slow  # imports Ray


def by_folds() -> Experiment:
    changes = {"data.format": "esc50", "data.root": "x", "data.train": ["1", "2"], "data.test": ["folds"]}
    return named_experiment("demo", "tiny").changed({**changes, "evaluation.judge.bootstrap": 20})


def clips(folds: int, each: int) -> Manifest:
    """Two classes in every fold."""
    rows = [(fold, n) for fold in range(1, folds + 1) for n in range(each)]
    return make_manifest(
        (Clip(f"{fold}-{n}.wav", f"/x/{fold}-{n}.wav", ("ab"[n % 2],), str(fold)) for fold, n in rows), "a test"
    )


def test_no_probe_sees_a_label_of_its_own_fold(tmp_path: Path) -> None:
    """Labels that are the other way round in each fold: a probe that saw its own fold would do well."""
    from orchestration.evaluation import Embeddings
    from orchestration.judging import LEAK, judge_encoder

    manifest = clips(folds=2, each=40)
    sign = np.array([1.0 if split == "1" else -1.0 for split in manifest.clips["split"].to_pylist()])
    label = manifest.targets()[:, 0] * 2.0 - 1
    h = np.random.default_rng(0).normal(0, 0.1, (80, 4)).astype(np.float32)
    h[:, 0] += label * sign
    embedded = Embeddings(h, np.arange(80))
    result = judge_encoder("mix-chan", embedded, embedded, manifest, manifest, by_folds(), tmp_path)
    assert result.figures["linear_map"].value < 0.4
    assert result.figures["accuracy"].value < 0.1
    assert result.description.startswith(LEAK)
    evidence = load_evidence(evidence_path(tmp_path, "mix-chan"))
    assert sorted(set(evidence.folds.tolist())) == ["1", "2"]
    assert evidence.clip_ids.tolist() == manifest.clips["clip_id"].to_pylist()


def test_cross_validation_needs_two_folds() -> None:
    with pytest.raises(SepsceneError, match="name at least two"):
        by_folds().changed({"data.train": ["1"]})
