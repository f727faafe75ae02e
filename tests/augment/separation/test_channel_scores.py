"""Custom separators and channel scores with the service and the store: views are equal and keys are distinct."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepscene.augment.audio import AudioFormat
from sepscene.augment.draws import Schedule
from sepscene.augment.separation.blocks import Columns, ServiceSettings
from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.separation.reader import ClipReader, ViewMaker
from sepscene.augment.separation.service import SeparationService
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.store.upkeep import list_store
from sepscene.augment.views import Views, choose_channel
from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomCode
from sepscene.models.names import trust_code
from sepscene.models.separators.custom import save_custom
from tests.custom_code import write_package

AUDIO = AudioFormat(clip_seconds=1.0)
CLIPS = 3
SCORES = ("quietest", "undefined", "one", "Learned")


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders of a module with three channels and a function with two."""
    write_package(tmp_path, "scorelab", monkeypatch)
    for name in ("Split", "halves", *SCORES):
        trust_code(f"scorelab.nets:{name}")
    save_custom(CustomCode.model_validate({"use": "scorelab.nets:Split", "sources": 3}), tmp_path / "thirds")
    save_custom(CustomCode.model_validate({"use": "scorelab.nets:halves"}), tmp_path / "halves")
    return {name: str(tmp_path / name) for name in ("thirds", "halves")}


def settings(checkpoints: dict[str, str], channel: object) -> ServiceSettings:
    views = {"combination": tuple(checkpoints), "patch_seconds": 0.5, "channel": channel}
    return ServiceSettings(views=Views.model_validate(views), audio=AUDIO, checkpoints=checkpoints)


def block(folder: Path, views: Views) -> Columns:
    noise = np.random.default_rng(0)
    uris = [str(folder / f"{clip}.wav") for clip in range(CLIPS)]
    for uri in uris:
        soundfile.write(uri, 0.1 * noise.standard_normal(AUDIO.samples), AUDIO.sample_rate)
    rows = np.arange(12)
    columns = views.draw(Schedule(seed=3, clips=CLIPS, epochs=4), rows)
    uri = np.array(uris, object)[columns["clip"]]
    return {**columns, "row": rows, "uri": uri, "offset_seconds": np.zeros(len(rows))}


def live(both: ServiceSettings, rows: Columns, store: SeparatedStore | None = None) -> Columns:
    return SeparationService(both, store)(ClipReader(both, store)(rows))


@pytest.mark.parametrize("channel", ["scorelab.nets:quietest", {"use": "scorelab.nets:Learned", "size": 4}])
def test_views_with_a_score_are_equal_live_and_from_the_store(
    channel: object, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    both = settings(checkpoints, channel)
    rows = block(tmp_path, both.views)
    alone = live(both, rows)
    assert (alone["fault"] == "").all() and alone["view_2"].any(axis=1).all()
    with SeparatedStore(str(tmp_path / "store")) as store:
        live(both, rows, store)
        store.flush()
        maker = ViewMaker(both, store)
        stored = maker(rows)
        assert stored["stored"].all() and "separators" not in vars(maker.service)
        # Another rule needs no score. Another score must be computed, and is then stored too.
        assert ClipReader(settings(checkpoints, "loudest"), store)(rows)["stored"].all()
        other = settings(checkpoints, {"use": "scorelab.nets:quietest", "sharpness": 7.0})
        assert not ClipReader(other, store)(rows)["stored"].any()
        live(other, rows, store)
        assert ClipReader(other, store)(rows)["stored"].all() and ClipReader(both, store)(rows)["stored"].all()
        store.flush()
    for name in ("view_1", "view_2", "channel_1", "channel_2"):
        np.testing.assert_array_equal(alone[name], stored[name], err_msg=name)
    groups = [group for group in list_store(str(tmp_path / "store")).groups if group.processor.startswith("scores-")]
    assert len(groups) == 4 and all(group.samples == group.channels for group in groups), "scores have no sound"


def test_a_sharp_score_determines_the_channel_and_no_other_draw(checkpoints: dict[str, str], tmp_path: Path) -> None:
    plain = settings(checkpoints, "uniform")
    sharp = settings(checkpoints, {"use": "scorelab.nets:quietest", "sharpness": 50.0})
    rows = block(tmp_path, plain.views)
    first = live(plain, rows)
    second = live(sharp, block(tmp_path, sharp.views))
    for name in ("clip", "processor", "specaugment_u", "view_1"):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert (first["channel_2"] != second["channel_2"]).any()
    torch.manual_seed(0)
    share_S = torch.rand(3)
    expected = {0: int(share_S.argmin()), 1: 1}  # of halves, 0.75 and 0.25
    assert [expected[processor] for processor in rows["processor"]] == second["channel_2"].tolist()


def test_a_channel_is_drawn_with_the_softmax_of_the_audible_scores() -> None:
    views = Views.model_validate({"channel": "scorelab.nets:quietest"})
    score_S = np.log(np.array([0.2, 0.5, 9.0, 0.3], np.float32))
    levels_S = np.array([-20.0, -30.0, -90.0, -10.0])
    uniforms = (np.arange(1000) + 0.5) / 1000
    chosen = [choose_channel(levels_S, uniform, views, score_S=score_S) for uniform in uniforms]
    assert np.bincount(chosen, minlength=4).tolist() == [200, 500, 0, 300]
    assert {choose_channel(levels_S, uniform, views, 1, score_S) for uniform in uniforms} == {0, 3}


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize(
    ("name", "says"), [("undefined", "must be finite and deterministic"), ("one", "must return one number per channel")]
)
def test_a_score_that_cannot_be_used_is_refused(name: str, says: str) -> None:
    with pytest.raises(SepsceneError, match=says):
        ChannelScores(CustomCode.model_validate({"use": f"scorelab.nets:{name}"})).try_out(2, 800)


def test_a_non_finite_score_is_a_fault_of_its_clip(checkpoints: dict[str, str], tmp_path: Path) -> None:
    both = settings(checkpoints, "scorelab.nets:undefined")
    made = live(both, block(tmp_path, both.views))
    assert all("the channel score scorelab.nets:undefined is [nan" in fault for fault in made["fault"])


def test_a_misspelt_rule_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ValueError, match=r"no rule 'loudesst' \(did you mean loudest\?\); known names: uniform, loudest"
    ):
        Views.model_validate({"channel": "loudesst"})
