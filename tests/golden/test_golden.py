"""Draws, ledger and losses of a tiny training equal the recorded ones.

The same seeds must give the same numbers after any change of the code. If a change is meant to alter them, record new
ones with `python -m tests.golden.test_golden`, and state the reason in docs/log.md.

Draws are hashed integers, or floats from a single division, and must be equal bit for bit. Losses are sums of float32
whose order depends on the kernel, so they differ between processors. Adam's first steps have nearly the same size for
small and large gradients, so rounding grows from step to step: between processors with AVX-512 and AVX2, the losses of
four steps differ by up to 3e-5 of their value, and the norms of the gradients by up to 1.7e-3.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import shipped_ladder
from sepscene.orchestration.training.pretrainer import Pretrainer

VALUES = {
    "mix-mix": Path(__file__).with_name("values.json"),
    "mix-chan": Path(__file__).with_name("values_mix_chan.json"),
}
"""Recorded values by kind of pair."""
CLIPS = 24
ROWS = 8
STEPS = {"mix-mix": 4, "mix-chan": 2}
LOSS_TOLERANCE = 1e-4
NORM_TOLERANCE = 5e-3


def measured(nano: Experiment, folder: Path, pair: str) -> dict[str, object]:
    """Digests of the draws, intervals of the ledger, and losses of the first steps; the demo's ladder separates."""
    write_scenes(folder, CLIPS, 0, "train", SceneConfig(clip_seconds=2.0))
    paths = np.array(sorted(str(path) for path in (folder / "train").glob("*.wav")), object)
    experiment = nano.changed({"views.pair": pair})
    schedule = Schedule(seed=experiment.seed, clips=CLIPS, epochs=4)
    audio = AudioFormat(clip_seconds=2.0)
    maker = ViewMaker(ServiceSettings(views=experiment.views, audio=audio, checkpoints=shipped_ladder()))
    trainer = Pretrainer(experiment, CLIPS, torch.device("cpu"))
    digests = {}
    losses = []
    for step in range(STEPS[pair]):
        draws = experiment.views.draw(schedule, np.arange(step * ROWS, (step + 1) * ROWS))
        digests |= {f"{name} {step}": _digest(column) for name, column in draws.items()}
        columns = {**draws, "uri": paths[draws["clip"]], "offset_seconds": np.zeros(ROWS)}
        metrics = trainer.consume(maker(columns), ROWS)
        losses.append([metrics["loss"], metrics["similarity"], metrics["coincidence"], metrics["gradient_norm"]])
    return {"draws": digests, "ledger": trainer.ledger.intervals, "losses": losses}


def _digest(column: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("pair", VALUES)
def test_numbers_equal_the_recorded_ones(nano: Experiment, tmp_path: Path, pair: str) -> None:
    found = measured(nano, tmp_path, pair)
    recorded = json.loads(VALUES[pair].read_text())
    assert found["draws"] == recorded["draws"]
    assert [list(interval) for interval in found["ledger"]] == recorded["ledger"]  # type: ignore[attr-defined]
    losses, expected = np.array(found["losses"]), np.array(recorded["losses"])
    np.testing.assert_allclose(losses[:, :3], expected[:, :3], rtol=LOSS_TOLERANCE)
    np.testing.assert_allclose(losses[:, 3], expected[:, 3], rtol=NORM_TOLERANCE)


if __name__ == "__main__":
    import tempfile

    from tests.conftest import nano as _nano

    for name, file in VALUES.items():
        with tempfile.TemporaryDirectory() as where:
            values = measured(_nano.__wrapped__(), Path(where), name)  # type: ignore[attr-defined]
            file.write_text(json.dumps(values, indent=1))
