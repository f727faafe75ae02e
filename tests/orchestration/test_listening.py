"""What a run's listening page is made of: its own test clips, its own ladder, its own encoder."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from augment.audio import AudioFormat
from augment.scenes import SceneConfig, write_scenes
from models.cnn14 import Cnn14, Cnn14Config
from models.encoder import Encoder, save_encoder
from models.frontend import FRONT_ENDS, LogMel
from models.separators import load_separator, save_separator
from models.tdcnpp import TDCNpp, TDCNppConfig
from orchestration import listening
from orchestration.listening import listen_to_run, nearest_clips, separated_scenes
from orchestration.results import ProcessorResult
from tasks.manifests import Manifest, read_manifest

AUDIO = AudioFormat(clip_seconds=1.0)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with six test scenes of one second, one processor and an encoder."""
    folder = tmp_path_factory.mktemp("run")
    write_scenes(folder / "scenes", 6, 0, "test", SceneConfig(clip_seconds=1.0, max_events=2))
    torch.manual_seed(0)
    save_separator(TDCNpp(TDCNppConfig.tiny()), folder / "ladder" / "N", {"step": 0})
    save_encoder(Encoder(LogMel(FRONT_ENDS["paper"]), Cnn14(Cnn14Config.tiny())), folder / "encoder", {"title": "t"})
    return folder


@pytest.fixture(scope="module")
def test_clips(run_dir: Path) -> Manifest:
    return read_manifest("scenes", str(run_dir / "scenes"))


@pytest.mark.slow
def test_scenes_are_separated_by_the_ladder_and_come_with_their_named_sources(
    run_dir: Path, test_clips: Manifest
) -> None:
    folder = str(run_dir / "ladder" / "N")
    scenes = separated_scenes(test_clips, AUDIO, {"N": folder})
    assert len(scenes) == listening.SCENES
    for scene in scenes:
        assert scene.sources_KT is not None
        assert scene.source_labels[-1] == "background"
        assert set(scene.source_labels[:-1]) == set(scene.labels)
        np.testing.assert_allclose(scene.sources_KT.sum(0), scene.mixture_T, atol=1e-4)
        with torch.inference_mode():
            plain_ST = load_separator(folder)(torch.from_numpy(scene.mixture_T)[None])[0].numpy()
        np.testing.assert_allclose(scene.separated_ST["N"], plain_ST, atol=1e-4)


def test_neighbours_are_the_nearest_by_cosine_and_never_the_query(run_dir: Path, test_clips: Manifest) -> None:
    queries = nearest_clips(test_clips, AUDIO, run_dir / "encoder")
    assert [query.name for query in queries] == [test_clips.clips["clip_id"][n].as_py() for n in (0, 2, 5)]
    for query in queries:
        distances = [near.distance for near in query.neighbours]
        assert distances == sorted(distances)
        assert len(distances) == 5
        assert query.name not in [near.name for near in query.neighbours]
        for near in query.neighbours:
            assert near.relevant == bool(set(near.labels) & set(query.labels))


@pytest.mark.slow
def test_page_of_a_run_has_all_of_it(run_dir: Path, test_clips: Manifest) -> None:
    ladder = [ProcessorResult(name="N", step=0, digest="d")]
    path = listen_to_run(run_dir, "demo, tiny", AUDIO, test_clips, {"N": str(run_dir / "ladder" / "N")}, ladder)
    page = path.read_text()
    assert path == run_dir / "listen.html"
    assert page.count("N, channel 2") >= listening.SCENES
    assert len(re.findall(r"SI-SDR improvement [−\d]", page)) == listening.SCENES
    assert page.count('aria-label="Query"') == listening.QUERIES
