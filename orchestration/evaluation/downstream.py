"""`sepscene evaluate ENCODER --task …`: evaluates encoders on public downstream tasks, with one JSON file per result.

The forward passes run in this process, without a cluster; only an encoder bundle and the files of the task are needed.

Shapes: T samples, N sounds or timestamps, D embedding, K classes.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from sepscene.augment.audio import ClipError, read_audio
from sepscene.models.config import Config, SepsceneError
from sepscene.models.encoders.encoder import Encoder
from sepscene.models.encoders.hear import get_timestamp_embeddings
from sepscene.orchestration.records.files import read_typed
from sepscene.tasks.datasets.downstream import Sound, Task
from sepscene.tasks.evaluation.downstream import Rows, score_task, targets_at
from sepscene.tasks.evaluation.settings import ScoringSettings

REMEDY = "delete it, and evaluate again"
"""For a damaged result."""


class TaskResult(Config):
    """The result of one encoder on one task.

    Attributes:
        encoder: name of the encoder, as tables show it.
        digest: of its configuration and weights.
        task: name of the task.
        metrics: those of `tasks.evaluation.downstream.score_task`.
        sounds: number of sounds that were embedded.
        left_out: sounds that could not be read, with the reason.
    """

    encoder: str
    digest: str
    task: str
    metrics: dict[str, float]
    sounds: int
    left_out: dict[str, str]


def evaluate_task(
    encoder: Encoder,
    name: str,
    digest: str,
    task: Task,
    progress: Callable[[int], None],
) -> TaskResult:
    """Embed the sounds of a task and score them.

    Args:
        encoder: in evaluation mode, on any device.
        name, digest: of the encoder, for the result.
        task: from `tasks.datasets.downstream.read_task`.
        progress: called with the number of sounds processed so far.

    Raises:
        SepsceneError: when no sound can be read, or a test part has no labelled sound.
    """
    left_out: dict[str, str] = {}
    parts: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for number, sound in enumerate(task.sounds):
        try:
            parts[number] = embed_sound(encoder, sound, task)
        except ClipError as error:
            left_out[sound.uri] = error.cause
        progress(number + 1)
    if not parts:
        uri, cause = next(iter(left_out.items()))
        raise SepsceneError(f"task {task.name}: no sound can be read; the first: {uri}: {cause}")
    h_ND, targets_NK, seconds_N = (np.concatenate(columns) for columns in zip(*parts.values(), strict=True))
    sound_N = np.repeat(list(parts), [len(part_ND) for part_ND, *_ in parts.values()])
    metrics = score_task(task, Rows(h_ND, targets_NK, sound_N, seconds_N), ScoringSettings())
    return TaskResult(
        encoder=name, digest=digest, task=task.name, metrics=metrics, sounds=len(parts), left_out=left_out
    )


def embed_sound(encoder: Encoder, sound: Sound, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (N, D), targets (N, K) and times in seconds (N,) of one sound: one row, or one per timestamp.

    Raises:
        ClipError: when the sound cannot be read, or has no samples after its offset.
    """
    wave_T = read_audio(sound.uri, encoder.sample_rate)
    end = len(wave_T) if sound.end_seconds is None else round(sound.end_seconds * encoder.sample_rate)
    wave_1T = torch.from_numpy(wave_T)[None, round(sound.offset_seconds * encoder.sample_rate) : end]
    if not wave_1T.numel():
        raise ClipError(sound.uri, f"has no samples from {sound.offset_seconds:g} s on")
    if task.kind == "event":
        h_1ND, milliseconds_1N = get_timestamp_embeddings(wave_1T, encoder)
        seconds_N = milliseconds_1N[0].cpu().numpy() / 1000
        return h_1ND[0].cpu().numpy(), targets_at(sound.events, seconds_N, task.classes), seconds_N
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        h_1D = encoder(wave_1T.to(device)).float().cpu().numpy()
    targets_1K = np.isin(np.array(task.classes), sound.labels)[None]
    return h_1D, targets_1K, np.zeros(1)


def result_path(folder: Path, task: str, encoder: str, digest: str) -> Path:
    """The file for the result of an encoder on a task, in `folder`.

    Raises:
        SepsceneError: when it holds the result of another encoder or task.
    """
    path = folder / f"{_file_name(task)}--{_file_name(encoder)}.json"
    if path.exists():
        held = read_typed(path, TaskResult, REMEDY)
        if (held.task, held.encoder, held.digest) != (task, encoder, digest):
            raise SepsceneError(
                f"{path} holds the result of another encoder (named {held.encoder}): give this one another --name, "
                "choose another --out, or delete the file"
            )
    return path


def read_results(folder: Path) -> list[TaskResult]:
    """All results in a folder, sorted by task and encoder.

    Raises:
        SepsceneError: when a file is damaged, or the folder has no results.
    """
    files = sorted(folder.glob("*--*.json"))
    results = [read_typed(file, TaskResult, REMEDY) for file in files]
    if not results:
        raise SepsceneError(f"{folder} has no results of tasks: create some with `sepscene evaluate ENCODER --task …`")
    return results


def headline(task: Iterable[TaskResult]) -> tuple[str, ...]:
    """The metrics of a task that tables show: those that all of its results have, accuracy before mAP."""
    shared = set.intersection(*(set(result.metrics) for result in task))
    return tuple(name for end in ("accuracy", "segment_f1", "map") for name in sorted(shared) if name.endswith(end))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
