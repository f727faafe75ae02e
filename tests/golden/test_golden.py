"""Draws, ledger and losses of a tiny training equal the recorded ones.

The same seeds must give the same numbers after any change of the code. If a change is meant to alter them, record new
ones with `python -m tests.golden.test_golden`, and state the reason in docs/log.md.

Draws are hashed integers, or floats from a single division, and must be equal bit for bit. Losses are sums of float32
whose order depends on the kernel, so on other processors they may differ by 1e-5 of their value.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.pretrainer import Pretrainer

VALUES = Path(__file__).with_name("values.json")
CLIPS = 24
STEPS = 4
ROWS = 8


def measured(nano: Experiment, folder: Path) -> dict[str, object]:
    """Digests of the draws, intervals of the ledger, and losses of four steps on mixtures only."""
    write_scenes(folder, CLIPS, 0, "train", SceneConfig(clip_seconds=2.0))
    paths = np.array(sorted(str(path) for path in (folder / "train").glob("*.wav")), object)
    experiment = nano.changed({"views.pair": "mix-mix"})
    schedule = Schedule(seed=experiment.seed, clips=CLIPS, epochs=4)
    maker = ViewMaker(ServiceSettings(views=experiment.views, audio=AudioFormat(clip_seconds=2.0), checkpoints={}))
    trainer = Pretrainer(experiment, CLIPS, torch.device("cpu"))
    digests = {}
    losses = []
    for step in range(STEPS):
        draws = experiment.views.draw(schedule, np.arange(step * ROWS, (step + 1) * ROWS))
        digests |= {f"{name} {step}": _digest(column) for name, column in draws.items()}
        columns = {**draws, "uri": paths[draws["clip"]], "offset_seconds": np.zeros(ROWS)}
        metrics = trainer.consume(maker(columns), ROWS)
        losses.append([metrics["loss"], metrics["similarity"], metrics["coincidence"], metrics["gradient_norm"]])
    return {"draws": digests, "ledger": trainer.ledger.intervals, "losses": losses}


def _digest(column: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()[:16]


def test_numbers_equal_the_recorded_ones(nano: Experiment, tmp_path: Path) -> None:
    found = measured(nano, tmp_path)
    recorded = json.loads(VALUES.read_text())
    assert found["draws"] == recorded["draws"]
    assert [list(interval) for interval in found["ledger"]] == recorded["ledger"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(found["losses"], recorded["losses"], rtol=1e-5)


if __name__ == "__main__":
    import tempfile

    from tests.conftest import nano as _nano

    with tempfile.TemporaryDirectory() as where:
        VALUES.write_text(json.dumps(measured(_nano.__wrapped__(), Path(where)), indent=1))  # type: ignore[attr-defined]
