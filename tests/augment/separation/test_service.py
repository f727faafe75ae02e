"""Both stages of the stream in one process: live and stored views are bit-identical, and rows have their costs."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepscene.augment.audio import AudioFormat, read_clip
from sepscene.augment.draws import FILLER, Schedule, draw
from sepscene.augment.separation.blocks import Columns, ServiceSettings
from sepscene.augment.separation.forward import Forward
from sepscene.augment.separation.reader import ClipReader, ViewMaker
from sepscene.augment.separation.service import SeparationService, open_separator
from sepscene.augment.store.separated_store import SeparatedStore, StoreSettings
from sepscene.augment.views import MIXTURE, Views, from_pcm, to_pcm, view_starts
from sepscene.models.config import SepsceneError
from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.foreign import ConvTasNetConfig, ConvTasNetSeparator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig

AUDIO = AudioFormat(clip_seconds=1.5)
CLIPS = 4
ROWS = 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Clips of noise."""
    root = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0)
    for clip in range(CLIPS):
        soundfile.write(root / f"{clip}.wav", 0.1 * noise.standard_normal(AUDIO.samples), AUDIO.sample_rate)
    return [str(path) for path in sorted(root.glob("*.wav"))]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A TDCN++ with two sources and a Conv-TasNet with four."""
    root = tmp_path_factory.mktemp("ladder")
    torch.manual_seed(0)
    save_separator(TDCNpp(TDCNppConfig.tiny(coefficients=16, bottleneck=8, hidden=8, blocks=2)), root / "S2", {})
    sizes = ConvTasNetConfig(sources=4, coefficients=16, bottleneck=8, hidden=8, blocks=2, repeats=1)
    save_separator(ConvTasNetSeparator(sizes), root / "other", {})
    return {name: str(root / name) for name in ("S2", "other")}


def block(clips: list[str], weights: tuple[float, ...] = (1.0, 1.0)) -> Columns:
    """Ten rows and a filler, as the first stage of the stream gets them."""
    rows = np.append(np.arange(ROWS), FILLER)
    columns = draw(Schedule(seed=5, clips=CLIPS, epochs=3), np.maximum(rows, 0), weights)
    uri = np.array(clips, object)[columns["clip"]]
    return {**columns, "row": rows, "uri": uri, "offset_seconds": np.zeros(len(rows))}


def settings(ladder: dict[str, str], pair: str = "mix-chan") -> ServiceSettings:
    """Both processors under one OR rule."""
    views = Views.model_validate({"pair": pair, "combination": ("S2", "other"), "patch_seconds": 0.5})
    return ServiceSettings(views=views, audio=AUDIO, checkpoints=ladder)


def same_views(one: Columns, two: Columns) -> None:
    """Check that views are bit-identical and from the same channels."""
    for name in ("row", "uri", "fault", "processor", "view_1", "view_2", "channel_1", "channel_2", "specaugment_u"):
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("pair", ["mix-mix", "mix-chan", "chan-chan"])
def test_live_stored_and_repaired_views_are_equal(
    pair: str, clips: list[str], ladder: dict[str, str], tmp_path: Path
) -> None:
    both = settings(ladder, pair)
    rows = block(clips)
    live = SeparationService(both)(ClipReader(both)(rows))
    assert not live["stored"].any() and not (live["fault"] != "").any()
    assert live["view_1"][:ROWS].any(axis=1).all() and not live["view_1"][ROWS:].any()
    with SeparatedStore(str(tmp_path)) as store:
        same_views(live, SeparationService(both, store)(ClipReader(both, store)(rows)))  # fills it
        store.flush()
        maker = ViewMaker(both, store)
        stored = maker(rows)
        same_views(live, stored)
        assert stored["stored"][:ROWS].all() == (pair != "mix-mix")
        assert "separators" not in vars(maker.service) or pair == "mix-mix"
        if pair == "mix-mix":
            assert len(store) == 0
            return
        for shard in (tmp_path / "shards").iterdir():
            damage(shard)
    with SeparatedStore(str(tmp_path)) as store:
        repaired = ViewMaker(both, store)(rows)
        same_views(live, repaired)
        assert repaired["damaged"].any() and not repaired["stored"][repaired["damaged"]].any()


@pytest.mark.parametrize("pair", ["mix-chan", "chan-chan"])
def test_rows_have_the_mixture_at_the_time_of_each_view(
    pair: str, clips: list[str], ladder: dict[str, str], tmp_path: Path
) -> None:
    """Live and from the store: silence if the view is the mixture; the views themselves do not change."""
    plain = settings(ladder, pair)
    rows = block(clips)
    both = plain.changed({"mixtures": True})
    live = SeparationService(both)(ClipReader(both)(rows))
    same_views(live, SeparationService(plain)(ClipReader(plain)(rows)))
    starts_N2 = np.stack(view_starts(rows, both.views, AUDIO.samples, AUDIO.sample_rate), axis=1)
    for n in range(ROWS):
        clip_T = to_pcm(read_clip(rows["uri"][n], AUDIO))
        for view in (1, 2):
            start = starts_N2[n, view - 1]
            heard = clip_T[start : start + both.patch] * (live[f"channel_{view}"][n] != MIXTURE)
            np.testing.assert_array_equal(live[f"mixture_{view}"][n], heard)
    assert live["mixture_2"][:ROWS].any() and live["mixture_1"].any() == (pair == "chan-chan")
    with SeparatedStore(str(tmp_path)) as store:
        SeparationService(both, store)(ClipReader(both, store)(rows))
        store.flush()
        stored = ViewMaker(both, store)(rows)
    assert stored["stored"][:ROWS].all()
    for name in ("mixture_1", "mixture_2", "view_1", "view_2"):
        np.testing.assert_array_equal(live[name], stored[name], err_msg=name)


def damage(shard: Path) -> None:
    """Change every thousandth byte of the first half."""
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2 : 1000] = bytes(byte ^ 255 for byte in content[: len(content) // 2 : 1000])
    shard.write_bytes(content)


@pytest.mark.slow
def test_entries_of_one_precision_are_not_used_for_another(
    clips: list[str], ladder: dict[str, str], tmp_path: Path
) -> None:
    exact = settings(ladder)
    rows = block(clips)
    coarse = exact.changed({"precision": "bfloat16"})
    live = SeparationService(exact)(ClipReader(exact)(rows))
    with SeparatedStore(str(tmp_path)) as store:
        half = SeparationService(coarse, store)(ClipReader(coarse, store)(rows))
        again = ClipReader(coarse, store)(rows)
        made = SeparationService(exact, store)(ClipReader(exact, store)(rows))
    same_views(live, made)
    assert again["stored"][:ROWS].all()
    assert (half["view_2"] != live["view_2"]).any(), "the precisions must differ for this test"


def test_an_unrelated_damaged_shard_damages_no_row(clips: list[str], ladder: dict[str, str], tmp_path: Path) -> None:
    both = settings(ladder)
    with SeparatedStore(str(tmp_path), StoreSettings(refresh_seconds=0)) as store:
        (tmp_path / "shards" / "torn.shard").write_bytes(b"torn")
        store._next_refresh = 0.0
        read = ClipReader(both, store)(block(clips))
        assert store.counters.damaged == 1 and not read["damaged"].any()


def test_a_full_store_has_no_separated_clip_without_its_mixture(
    clips: list[str], ladder: dict[str, str], tmp_path: Path
) -> None:
    both = settings(ladder)
    rows = block(clips)
    with SeparatedStore(str(tmp_path), StoreSettings(max_bytes=5 * AUDIO.samples)) as store:
        read = ClipReader(both, store)(rows)
        service = SeparationService(both, store)
        service(read)
        assert store.counters.dropped > 0 and len(store) > 0
        for n in range(ROWS):
            separated, mixture = service.stored.keys(read, n)  # type: ignore[union-attr]
            assert mixture in store or separated not in store


def test_keys_are_unchanged_and_unique_per_offset(ladder: dict[str, str]) -> None:
    one = settings(ladder)
    assert [one.store_settings(offset).split("@")[1] for offset in (0, 10.0, 20.5)] == ["0", "10", "20.5"]
    assert one.store_settings(0.0) == AUDIO.model_dump_json() + "@0"
    assert one.store_settings(100000.2) != one.store_settings(100000.4)
    assert one.store_settings(np.float64(0.1)) == one.store_settings(0.1)


def test_one_or_rule_over_different_architectures(clips: list[str], ladder: dict[str, str]) -> None:
    """Two channels of one processor, four of the other; both are drawn, and channels of each."""
    both = settings(ladder, "chan-chan")
    parts = [SeparationService(both)(ClipReader(both)(block(clips))) for clips in (clips, clips[::-1])]
    for processor, sources in ((0, 2), (1, 4)):
        chosen = [part[name][:ROWS][part["processor"][:ROWS] == processor] for part in parts
                  for name in ("channel_1", "channel_2")]  # fmt: skip
        used = set(np.concatenate(chosen).tolist()) - {MIXTURE}
        assert used <= set(range(sources)) and len(used) > 1
        assert max(used) >= sources // 2


def test_rows_have_their_costs(clips: list[str], ladder: dict[str, str]) -> None:
    both = settings(ladder)
    begin = time.perf_counter()
    read = ClipReader(both)(block(clips))
    made = SeparationService(both)(read)
    took = time.perf_counter() - begin
    assert 0 < made["reading_seconds"].sum() + made["separation_seconds"].sum() <= took
    assert (made["queued_seconds"] >= 0).all() and (made["made_at"] >= read["read_at"]).all()
    assert made["read_bytes"].tolist() == [2 * AUDIO.samples] * ROWS + [0]


def test_clips_are_padded_to_one_shape(clips: list[str], ladder: dict[str, str]) -> None:
    """Each pass has the same number of clips, and the results are those of the clips."""
    shapes = []

    def separator(wave_BT: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(wave_BT.shape))
        return torch.stack([wave_BT, -wave_BT], dim=1)

    forward = Forward("cpu", clips=3)
    pcm_BT = np.arange(20, dtype=np.int16).reshape(2, 10)
    got = forward.submit(separator, pcm_BT)()  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, np.stack([from_pcm(pcm_BT), -from_pcm(pcm_BT)], axis=1))
    assert shapes == [(3, 10)]


@pytest.mark.gpu
def test_asynchronous_passes_on_a_gpu_equal_a_cpu(ladder: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes are submitted before the first result is read; results differ by at most one 16-bit step."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pcm_PBT = np.random.default_rng(0).integers(-8000, 8000, (3, 2, AUDIO.samples)).astype(np.int16)
    made = []
    for device in ("cpu", "cuda"):
        separator = fast_separator(open_separator("S2", ladder["S2"], AUDIO), device)
        forward = Forward(device, clips=3)
        results = [forward.submit(separator, pcm_BT) for pcm_BT in pcm_PBT]
        made.append(np.stack([to_pcm(result()) for result in results]).astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1


def test_another_sample_rate_is_refused_with_advice(ladder: dict[str, str]) -> None:
    other = ServiceSettings(
        views=Views(combination=("S2",)), audio=AudioFormat(sample_rate=8000), checkpoints={"S2": ladder["S2"]}
    )
    with pytest.raises(SepsceneError, match=r"set audio\.sample_rate to 16000"):
        SeparationService(other)


def test_a_missing_clip_is_a_fault_of_its_row_only(clips: list[str], ladder: dict[str, str]) -> None:
    both = settings(ladder)
    rows = block(clips)
    rows["uri"][3] = "/nowhere.wav"
    made = SeparationService(both)(ClipReader(both)(rows))
    assert made["fault"].tolist() == [""] * 3 + ["no such file"] + [""] * (len(rows["row"]) - 4)


def test_the_reader_hashes_a_clip_once(
    clips: list[str], ladder: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sepscene.augment import audio

    for clip in clips:
        os.utime(clip, (1, 1))  # the modification time; the change time cannot be set
    monkeypatch.setattr("sepscene.augment.locations._RACY_NS", 0)
    hashed: list[str] = []
    plain = audio._hash
    monkeypatch.setattr("sepscene.augment.audio._hash", lambda uri: hashed.append(uri) or plain(uri))
    with SeparatedStore(str(tmp_path)) as store:
        reader = ClipReader(settings(ladder), store)
        for _ in range(3):
            reader(block(clips))
    assert sorted(hashed) == sorted(clips)
