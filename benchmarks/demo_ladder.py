"""Train the checkpoint ladder of the demo: a small STFT TDCN++, trained with MixIT on synthetic scenes.

    python -m benchmarks.demo_ladder WORK_FOLDER --into models/demo_ladder

It uses one process and one thread, so that other work can run at the same time; if interrupted, it continues from its
last save. Rows, draws, segments and loss are those of `sepscene separator train`, without Ray. Each checkpoint is
scored on 32 held-out mixtures before it is saved; its card contains the metrics. WORK_FOLDER contains the scenes, the
state and scores.jsonl.

Training scenes have one event each and a background; held-out scenes have two to four events, as in the demo. MixIT
with two channels learns to separate sounds of different clips. Events of the same clip are not separated: trained on
scenes as in the demo, the same network improves their sources by 1.2 to 1.9 dB less.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule
from sepscene.augment.separation.reader import read_segments, read_source_segments
from sepscene.augment.synthetic.scenes import PROFILES, write_scenes
from sepscene.augment.synthetic.sources import scenes_manifest
from sepscene.augment.views import Views, from_pcm
from sepscene.models.files import replace_file
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.training.row_draws import DrawRows
from sepscene.tasks.datasets.readers import Manifest, read_manifest
from sepscene.tasks.evaluation.separation_scores import score_separation
from sepscene.tasks.losses.mixit import loudest_targets, mixit_loss, supervised_loss

NETWORK = TDCNppConfig(
    basis="stft", window_samples=512, hop_samples=128, bottleneck=64, hidden=128, repeats=1, blocks=6
)
STEPS = {"N": 0, "F": 100, "S1": 500, "S2": 3000}
AUDIO = AudioFormat()
SCENES = {
    "train": (1024, PROFILES["recurring"].changed({"min_events": 1, "max_events": 1})),
    "held_out": (64, PROFILES["recurring"]),
}
FIRST_SEED = 100
"""First seed of the scenes. Studies and the demo use seeds from 0, so they share no scene with the training data."""
BATCH = 8
SEGMENT_SECONDS = 2.0
CLIP_NORM = 5.0
SAVE_EVERY = 50
SCORE_EVERY = 250
HELD_OUT = 32


def scenes(work: Path, seed: int) -> Manifest:
    """The scenes of both splits, generated at the first call."""
    for split, (count, config) in SCENES.items():
        if not scenes_manifest(work / "scenes", split).exists():
            write_scenes(work / "scenes", count, FIRST_SEED + seed, split, config, with_sources=True)
    return read_manifest("scenes", str(work / "scenes"))


class Training:
    """The separator with its optimiser and its rows."""

    def __init__(self, work: Path, seed: int, rate: float, objective: str) -> None:
        self.work = work
        self.objective = objective
        self.rate = rate
        self.step = 0
        self.manifest = scenes(work, seed)
        train = self.manifest.select("train")
        rows = max(STEPS.values()) * 2 * BATCH
        schedule = Schedule(seed=seed, clips=len(train), epochs=-(-rows // len(train)))
        self.draws = DrawRows(train.clips, schedule, Ledger(schedule.rows), Views())
        torch.manual_seed(seed)
        self.separator = TDCNpp(NETWORK)
        self.optimizer = torch.optim.Adam(self.separator.parameters(), lr=rate)
        held_out = self.manifest.select("held_out").clips
        self.held_out = [(row["uri"], row["offset_seconds"]) for row in held_out.to_pylist()]
        state = work / "state.pt"
        if state.exists():
            saved = torch.load(state, weights_only=True)
            self.separator.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def loss(self) -> torch.Tensor:
        """The mean loss of the rows of the next step."""
        rows = 2 * BATCH if self.objective == "mixit" else BATCH
        columns = self.draws({"id": np.arange(self.step * rows, (self.step + 1) * rows)})
        if self.objective == "mixit":
            wave_BRT = from_pcm(read_segments(columns, AUDIO, SEGMENT_SECONDS)["segment"]).reshape(BATCH, 2, -1)
            reference_BRT = torch.from_numpy(wave_BRT)
            return mixit_loss(reference_BRT, self.separator(reference_BRT.sum(dim=1))).loss_B.mean()
        found = read_source_segments(columns, AUDIO, SEGMENT_SECONDS)["sources"]
        samples = round(SEGMENT_SECONDS * AUDIO.sample_rate)
        sources = [torch.from_numpy(from_pcm(np.frombuffer(pcm, np.int16).reshape(-1, samples))) for pcm in found]
        estimate_BST = self.separator(torch.stack([source_KT.sum(dim=0) for source_KT in sources]))
        losses = [
            supervised_loss(loudest_targets(source_KT, NETWORK.sources)[None], estimate_ST[None])
            for source_KT, estimate_ST in zip(sources, estimate_BST, strict=True)
        ]
        return torch.stack(losses).mean()

    def advance(self) -> float:
        """One optimiser step."""
        left = 1 - self.step / max(STEPS.values())
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, 2 * left)  # constant, then linear to zero over the second half
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.separator.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        if self.step % SAVE_EVERY == 0:
            draft = self.work / "state.pt.new"
            state = {"model": self.separator.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
            torch.save(state, draft)
            replace_file(draft, self.work / "state.pt")
        return float(loss.detach())

    def score(self) -> dict[str, float | int]:
        """Metrics on the held-out scenes, for the card of a checkpoint."""
        self.separator.eval()
        metrics = score_separation(self.separator, self.held_out, AUDIO, HELD_OUT).means()
        self.separator.train()
        return metrics


def main() -> None:
    """Train from the state in the folder, and save every checkpoint of the ladder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="folder of the ladder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--objective", choices=("mixit", "supervised"), default="mixit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    training = Training(given.work, given.seed, given.learning_rate, given.objective)
    loss = float("nan")
    begin = time.time()
    while True:
        names = [name for name, step in STEPS.items() if step == training.step]
        if names or training.step % SCORE_EVERY == 0:
            metrics = training.score()
            record = {"step": training.step, "loss": loss, "seconds": round(time.time() - begin)} | metrics
            with (given.work / "scores.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            data = f"{SCENES['train'][0]} recurring scenes of one event"
            about = {"objective": given.objective, "learning_rate": given.learning_rate, "seed": given.seed}
            for name in names:
                facts = {"name": name, "step": training.step, "data": data}
                save_separator(training.separator, given.into / name, facts | about | metrics)
        if training.step >= max(STEPS.values()):
            return
        loss = training.advance()


if __name__ == "__main__":
    main()
