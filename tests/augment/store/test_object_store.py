"""The SeparatedStore and a data set on S3: pyarrow's client with a local server that implements the protocol."""

import io
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from moto.server import ThreadedMotoServer
from pyarrow import fs

from sepscene.augment.audio import AudioFormat, content_hash, read_clip
from sepscene.augment.store.separated_store import SeparatedStore, StoreKey, StoreSettings
from sepscene.augment.store.upkeep import collect_store, list_store, verify_store
from sepscene.tasks.datasets.readers import read_manifest

SETTINGS = StoreSettings(publish_seconds=1e6, publish_max_seconds=1e6, refresh_seconds=0, segment_samples=64)
KEYS = [StoreKey(f"clip-{n}", "S2", "16 kHz") for n in range(3)]
LEVELS = np.array([-10.0, -20.0], np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URI options for a local server with one bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for the server, without a search for others."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def clip(number: int) -> np.ndarray:
    """int16 (2, 1000)."""
    return np.random.default_rng(number).integers(-32768, 32768, (2, 1000)).astype(np.int16)


@pytest.mark.slow
def test_a_store_is_shared_verified_and_cleared(server: str) -> None:
    uri = f"s3://bucket/store{server}"
    with SeparatedStore(uri, SETTINGS) as writer, SeparatedStore(uri, SETTINGS) as reader:
        for number, key in enumerate(KEYS):
            assert reader.levels(key) is None
            writer.put(key, clip(number), LEVELS)
            writer.flush()
            reader.refresh()
            np.testing.assert_array_equal(reader.levels(key), LEVELS)
            np.testing.assert_array_equal(reader.get_crop(key, 1, 333, 500), clip(number)[1, 333:833])
        assert reader.counters.damaged == 0 and reader.counters.hits == 3
        assert verify_store(reader.folder).whole and list_store(reader.folder).entries == 3
        reader.folder.mark_filled("scenes")
        *_, newest = reader.folder.shards()
        removed = collect_store(writer.folder, max_bytes=newest.size)
        assert (removed.old_shards, removed.bytes_left) == (2, newest.size)
        assert not reader.folder.is_filled("scenes")
        assert reader.get_crop(KEYS[0], 0, 0, 10) is None, "removed while the reader has it open: a miss"
        np.testing.assert_array_equal(reader.get_crop(KEYS[2], 0, 0, 1000), clip(2)[0])


@pytest.mark.slow
def test_a_shard_removed_during_verification_is_ignored(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SeparatedStore(f"s3://bucket/verified{server}", SETTINGS) as store:
        for number, key in enumerate(KEYS[:2]):
            store.put(key, clip(number), LEVELS)
            store.flush()
        folder = store.folder
        first, _ = folder.shards()
        opened = folder.open

        def open_then_remove(name: str):  # type: ignore[no-untyped-def]
            file = opened(name)
            if name == first.base_name:
                folder.filesystem.delete_file(first.path)
            return file

        monkeypatch.setattr(folder, "open", open_then_remove)
        found = verify_store(folder)
        assert found.whole and (found.shards, found.entries) == (1, 1)


@pytest.mark.slow
def test_a_data_set_is_read(server: str) -> None:
    filesystem, _ = fs.FileSystem.from_uri(f"s3://bucket/data{server}")
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
    for name in ("dog/a b.wav", "cat/50%.wav"):
        sound = io.BytesIO()
        soundfile.write(sound, wave, 16_000, format="WAV")
        with filesystem.open_output_stream(f"bucket/data/{name}") as stream:
            stream.write(sound.getvalue())
    manifest = read_manifest("directory", f"s3://bucket/data{server}")
    assert manifest.clips["clip_id"].to_pylist() == ["cat/50%.wav", "dog/a b.wav"]
    for uri in manifest.clips["uri"].to_pylist():
        np.testing.assert_allclose(read_clip(uri, AudioFormat(clip_seconds=0.1)), wave, atol=2**-15)
    assert len({content_hash(uri) for uri in manifest.clips["uri"].to_pylist()}) == 1
