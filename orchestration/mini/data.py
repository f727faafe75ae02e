"""The data that all studies of one storage share: scenes, and the log-mels of clips and channels, each made once."""

from functools import cache, partial
from pathlib import Path

from rich.console import Console

from sepscene.augment.synthetic.scenes import SceneConfig, as_long_as, generate_scene, write_scenes
from sepscene.augment.synthetic.shared_events import shared_events_in_words
from sepscene.augment.views import Views
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.logmel_store import LogMelStore
from sepscene.orchestration.records.files import one_at_a_time
from sepscene.orchestration.records.sweep_folder import StudyData
from sepscene.tasks.datasets.readers import Manifest, read_manifest

SCENES_LISTENED_TO = 16
"""Scenes of the study's kind whose sources say how often two crops share an event."""


def stores_of(
    rows: list[Experiment], storage: Path, console: Console
) -> tuple[LogMelStore, LogMelStore, dict[str, str]]:
    """The log-mels of the training clips with all channels that any row needs, those of the test clips, and the
    separators' folders by name.

    Args:
        rows: experiments of scale mini over the same data.
        storage: folder of the studies. Another process that needs the same data waits until it is there.
        console: shows the progress.

    Raises:
        SepsceneError: when a clip cannot be read, or a separator is damaged.
    """
    base = rows[0]
    backgrounds = 1 + any(row.views.background == "exchanged" for row in rows)
    shared = StudyData.of(storage)
    names = [name for row in rows if row.views.separates for name in row.views.combination]
    processors = {name: str(base.separator.checkpoints[name]) for name in names}
    shared.path.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(shared.lock):
        train, test = _manifests(base, shared, backgrounds, console)
        train_store, test_store = (LogMelStore(shared.logmels, base, manifest) for manifest in (train, test))
        show = partial(_count, console)
        train_store.fill(processors, backgrounds, show)
        test_store.fill({}, progress=show)
    return train_store, test_store, processors


def described(base: Experiment) -> dict[str, str]:
    """The data, as the report says it."""
    data = base.data
    if not data.is_generated:
        return {"data set": data.described}
    scenes = as_long_as(base.audio.clip_seconds, data.scenes_profile)
    return {
        "data set": f"{data.described} ({data.scenes_profile})",
        "training clips": str(data.scenes_train),
        "test clips": str(data.scenes_test),
        "pairs that share an event": _shared_events(scenes, base.views),
    }


@cache
def _shared_events(config: SceneConfig, views: Views) -> str:
    scenes = [generate_scene(0, index, config).sources_ST for index in range(SCENES_LISTENED_TO)]
    return shared_events_in_words(scenes, views, config.sample_rate)


def _manifests(base: Experiment, shared: StudyData, backgrounds: int, console: Console) -> tuple[Manifest, Manifest]:
    data = base.data
    if not data.is_generated:
        manifest = read_manifest(data.format, str(data.root))
        return manifest.select(*data.train), manifest.select(*data.test)
    config = as_long_as(base.audio.clip_seconds, data.scenes_profile)
    root = shared.scenes(data.scenes_profile, config.clip_seconds, data.scenes_train, data.scenes_test)
    for split, count, versions in (("train", data.scenes_train, backgrounds), ("test", data.scenes_test, 1)):
        marks = [shared.scenes_done(root, split, version) for version in range(1, versions + 1)]
        if not marks[-1].exists():
            console.print(f"generating {count} scenes for {split}")
            write_scenes(root, count, 0, split, config, False, versions)
            for mark in marks:
                mark.touch()
    manifest = read_manifest("scenes", str(root))
    return manifest.select("train"), manifest.select("test")


def _count(console: Console, part: str, done: int, clips: int) -> None:
    if done == clips or done % 256 == 0:
        console.print(f"log-mels of {part}: {done} of {clips} clips", highlight=False)
