"""Embedding many clips: where the actors stand, and what becomes of the blocks that they send; no Ray is started."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sepscene.orchestration.presets import named_experiment
from sepscene.tasks.datasets.manifest import Clip, Manifest, make_manifest

pytestmark = pytest.mark.slow  # imports Ray


class Recorded:
    """Stands for a Ray data set: remembers what is asked for, and gives blocks in an order of its own."""

    def __init__(self, clips: int) -> None:
        self.clips, self.asked = clips, {}  # type: ignore[var-annotated]

    def repartition(self, **_: Any) -> "Recorded":
        return self

    def map_batches(self, _: object, **asked: Any) -> "Recorded":
        self.asked = asked
        return self

    def blocks(self, _: "Recorded") -> list[dict[str, np.ndarray]]:
        """h of clip n is n everywhere; clip 3 cannot be read."""
        return [
            {
                "position": position,
                "h:small": np.repeat(position[:, None], 2, axis=1).astype(np.float32),
                "h:large": np.repeat(position[:, None], 5, axis=1).astype(np.float32),
                "fault": np.array(["torn" if n == 3 else "" for n in position], object),
                "samples": np.full(len(position), 160_000),
                "silent": np.zeros(len(position), bool),
                "level": -position.astype(np.float64),
                "background": np.repeat(-position[:, None], 3, axis=1).astype(np.float64),
            }
            for position in np.array_split(np.arange(self.clips), 4)[::-1]
        ]


def manifest(name: str, clips: int) -> Manifest:
    return make_manifest((Clip(f"{name}{n}", f"/x/{name}{n}.wav", ("a",), "test") for n in range(clips)), "a test")


def test_clips_of_blocks_in_any_order_come_back_to_their_manifests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sepscene.orchestration.evaluation import embed_manifest as evaluation

    stream, done = Recorded(clips=10), []
    monkeypatch.setattr("ray.data.from_arrow", lambda _: stream)
    monkeypatch.setattr(evaluation, "blocks_of", stream.blocks)
    experiment = named_experiment("demo", "tiny").changed(
        {
            "resources.separation_gpus": 0.5,
            "resources.separation_labels": {"pool": "separators"},
            "resources.separation_accelerator": "L4",
        }
    )
    bundles = {"small": Path("s"), "large": Path("l")}
    train, test = evaluation.embed_manifests(bundles, (manifest("a", 6), manifest("b", 4)), experiment, done.append)
    assert done == [2, 4, 7, 10]  # how many are done, each time a block comes
    for name, dimensions in (("small", 2), ("large", 5)):
        assert train[name].position_N.tolist() == [0, 1, 2, 4, 5]
        np.testing.assert_array_equal(train[name].h_ND, np.repeat([[0], [1], [2], [4], [5]], dimensions, axis=1))
        assert test[name].position_N.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(test[name].h_ND[:, 0], [6, 7, 8, 9])
        np.testing.assert_array_equal(train[name].features.level_N, [0, -1, -2, -4, -5])
        np.testing.assert_array_equal(test[name].features.background_NF[:, 2], [-6, -7, -8, -9])
    assert "/x/a3.wav is left out of the evaluation: torn" in caplog.text
    asked = {key: stream.asked[key] for key in ("num_gpus", "label_selector", "accelerator_type")}
    assert asked == {"num_gpus": 0.5, "label_selector": {"pool": "separators"}, "accelerator_type": "L4"}
    assert stream.asked["fn_constructor_args"][2] == "cuda"
