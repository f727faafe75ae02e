"""Read data sets that Hugging Face's `datasets` has saved to disk, without that package and without copying sound.

`save_to_disk` writes a Dataset to a folder with state.json and Arrow files, and a DatasetDict to one such folder per
split. Each row is a clip: `FOLDER/train/data-00000-of-00001.arrow#12`.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sepscene.augment.arrow_files import audio_column, batches_of, schema_of
from sepscene.augment.locations import MAX_ROWS
from sepscene.models.files import parse_json
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.manifest import Clip, Manifest, read_from
from sepscene.tasks.datasets.public import LABEL_COLUMNS, clips_of_rows
from sepscene.tasks.datasets.root import Root

_STATE = "state.json"
_INFO_FILES = ("dataset_info.json", "dataset_dict.json")


def read_huggingface(root: Root) -> Manifest:
    """A data set that `save_to_disk` wrote.

    Raises:
        ManifestError: it is in an object store, was not written by `save_to_disk`, or a file is damaged or missing.
    """
    if not root.is_local:
        raise ManifestError(f"{root.location}: Arrow files must be local: copy them to a local folder, or use Parquet")
    states = [path for path in root.files(suffixes=[".json"]) if posixpath.basename(path) == _STATE]
    if not states:
        raise ManifestError(
            f"{root.location}: contains no {_STATE}; write the data set there with its method save_to_disk, or use "
            "the format `parquet` for Parquet files, or `folder` for audio files with metadata.csv"
        )
    named = {state: _files(root, state) for state in states}
    for path in root.files(suffixes=[".arrow"]):
        if not any(path in files for files, _ in named.values()):
            root.leave_out("not listed in a state.json", path)
    root.used.update(path for path in root.all_files if posixpath.basename(path) in _INFO_FILES)
    clips = (clip for files, split in named.values() for file in files for clip in _clips(root, file, split))
    return read_from(root, clips, "not inside an Arrow file")


def _files(root: Root, state: str) -> tuple[list[str], str]:
    """The Arrow files that a state.json lists, and the split of their clips."""
    folder = posixpath.dirname(state)
    try:
        content = parse_json(root.text(state))
        files = [posixpath.join(folder, str(entry["filename"])) for entry in content["_data_files"]]
        stored = content.get("_split")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{root.location}/{state}: is not what save_to_disk writes ({error!r})") from error
    return files, posixpath.basename(folder) or (stored if isinstance(stored, str) else "") or "train"


def _clips(root: Root, file: str, split: str) -> Iterator[Clip]:
    uri = root.uri(file)
    try:
        schema = schema_of(uri)
        audio_column(schema)
        columns = [name for name in LABEL_COLUMNS if name in schema.names]
        rows: list[dict[str, Any]] = []
        for batch in batches_of(uri):
            if len(rows) + len(batch) > MAX_ROWS:
                raise ValueError(f"it has more than {MAX_ROWS} rows")
            rows += batch.select(columns).to_pylist() if columns else [{}] * len(batch)
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ManifestError(
            f"{uri}: cannot be read as Arrow ({error}); check that the file is complete and can be read"
        ) from error
    return clips_of_rows(file, uri, schema, rows, split)
