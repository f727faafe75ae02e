"""The content of a run's listening page: test clips, the ladder, and the encoder's embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sepscene.augment.audio import AudioFormat, read_clip
from sepscene.augment.synthetic.scenes import SceneConfig, write_scenes
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.evaluation.compare import save_predictions
from sepscene.orchestration.records.results import ProcessorResult
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.reports import listening_data as listening
from sepscene.tasks.datasets.readers import Manifest, read_manifest
from sepscene.tasks.evaluation.scores import score_embeddings
from sepscene.tasks.evaluation.settings import ScoringSettings
from tests.orchestration.reports.test_listening_page import sounds

AUDIO = AudioFormat(clip_seconds=1.0)
CLIPS = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with test scenes of one second, one processor and evaluated embeddings on a line."""
    folder = tmp_path_factory.mktemp("run")
    write_scenes(folder / "scenes", CLIPS, 0, "test", SceneConfig(clip_seconds=1.0, max_events=2))
    torch.manual_seed(0)
    save_separator(TDCNpp(TDCNppConfig.tiny()), folder / "ladder" / "N", {"step": 0})
    test = read_manifest("scenes", str(folder / "scenes"))
    angle_N = np.linspace(0, 1, CLIPS)
    h_ND = np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)
    targets = test.targets()
    settings = ScoringSettings(shallow_epochs=1, bootstrap=0, qbe_clips=2)
    ids = test.clips["clip_id"].to_pylist()
    scores = score_embeddings(h_ND, targets, h_ND, targets, test.classes, settings, ids)
    save_predictions(scores, RunFolder(folder).predictions("mix-chan"))
    return folder


@pytest.fixture(scope="module")
def clips(run_dir: Path) -> Manifest:
    return read_manifest("scenes", str(run_dir / "scenes"))


@pytest.fixture(scope="module")
def page(run_dir: Path, clips: Manifest) -> Path:
    ladder = [ProcessorResult(name="N", step=0, digest="d")]
    folders = {"N": str(run_dir / "ladder" / "N")}
    return listening.listening_page(run_dir, clips, AUDIO, folders, ladder, "mix-chan")


def test_scenes_have_all_channels_and_their_named_sources(page: Path, clips: Manifest) -> None:
    found = sounds(page)
    labels = [label for label, _ in found]
    assert labels.count("N, channel 1") == labels.count("N, channel 2") == listening.SCENES
    assert labels.count("True source: background") == listening.SCENES
    first = clips.clips.slice(0, 1).to_pylist()[0]
    mixture_T = read_clip(first["uri"], AUDIO)
    loudest = np.abs(found[0][1]).max() / np.abs(mixture_T).max()
    np.testing.assert_allclose(found[0][1], mixture_T * loudest, atol=3 / 32768)
    for label in first["labels"]:
        assert f"True source: {label}" in labels


def test_neighbours_are_the_nearest_on_the_line_and_never_the_query(page: Path, clips: Manifest) -> None:
    place = {clip_id: n for n, clip_id in enumerate(clips.clips["clip_id"].to_pylist())}
    text = page.read_text()
    queries = text[text.index('id="queries"') :].split("<article")[1:]
    assert len(queries) == listening.QUERIES
    for query in queries:
        name = next(clip_id for clip_id in place if f">{clip_id}" in query)
        found = [label.partition(". ")[2] for label, _ in sounds(page, query)][1:]
        assert name not in found
        gaps = [abs(place[near] - place[name]) for near in found]
        assert gaps == sorted(gaps)
        assert len(gaps) == listening.NEIGHBOURS
        assert max(gaps) <= listening.NEIGHBOURS


def test_a_query_is_not_its_own_neighbour_where_clips_are_few(
    run_dir: Path, clips: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "NEIGHBOURS", CLIPS)
    for query in listening._queries(run_dir, clips, AUDIO, "mix-chan"):
        assert len(query.neighbours) == CLIPS - 1
        assert query.name not in {near.name for near in query.neighbours}
