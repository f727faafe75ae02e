"""Data sets of Hugging Face's `datasets` on disk, read without that package and without copying their sound.

What `save_to_disk` wrote: for a Dataset a folder with state.json and Arrow files, for a DatasetDict such a folder for
each split. A clip is a row: `FOLDER/train/data-00000-of-00001.arrow#12`.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sepscene.augment.arrow_files import audio_column, batches_of, schema_of
from sepscene.augment.locations import MOST_ROWS
from sepscene.models.files import parse_json
from sepscene.tasks.datasets.labels import ManifestError
from sepscene.tasks.datasets.manifest import Clip, Manifest, read_from
from sepscene.tasks.datasets.public import LABEL_COLUMNS, clips_of_rows
from sepscene.tasks.datasets.root import Root

_STATE = "state.json"
_OTHERS = ("dataset_info.json", "dataset_dict.json")


def read_huggingface(root: Root) -> Manifest:
    """A data set that `save_to_disk` wrote.

    Labels: column `labels` or `label` (list, text, or class numbers that the schema names). Split: column `split`, else
    the name of the DatasetDict's split, else the one that the Dataset remembers, else train. `offset_seconds` is read
    if it is there.

    Raises:
        ManifestError: it lies in an object store, was not written by `save_to_disk`, or a file is damaged or missing.
    """
    if not root.is_local:
        raise ManifestError(
            f"{root.location}: Arrow files are mapped into memory: copy them to a folder, or take Parquet"
        )
    states = [path for path in root.files(suffixes=[".json"]) if posixpath.basename(path) == _STATE]
    if not states:
        raise ManifestError(
            f"{root.location}: holds no {_STATE}; write the data set there with its method save_to_disk, or take "
            "`parquet` for Parquet files and `folder` for sound with metadata.csv"
        )
    named = {state: _files(root, state) for state in states}
    for path in root.files(suffixes=[".arrow"]):
        if not any(path in files for files, _ in named.values()):
            root.leave_out("no state.json names it", path)
    root.used.update(path for path in root.everything if posixpath.basename(path) in _OTHERS)
    clips = (clip for files, split in named.values() for file in files for clip in _clips(root, file, split))
    return read_from(root, clips, "it lies beside the Arrow files, not in one")


def _files(root: Root, state: str) -> tuple[list[str], str]:
    """The Arrow files that a state.json names, and the split of their clips."""
    folder = posixpath.dirname(state)
    try:
        content = parse_json(root.text(state))
        files = [posixpath.join(folder, str(entry["filename"])) for entry in content["_data_files"]]
        remembered = content.get("_split")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{root.location}/{state}: is not what save_to_disk writes ({error!r})") from error
    return files, posixpath.basename(folder) or (remembered if isinstance(remembered, str) else "") or "train"


def _clips(root: Root, file: str, split: str) -> Iterator[Clip]:
    uri = root.uri(file)
    try:
        schema = schema_of(uri)
        audio_column(schema)
        wanted = [name for name in LABEL_COLUMNS if name in schema.names]
        rows: list[dict[str, Any]] = []
        for batch in batches_of(uri):
            if len(rows) + len(batch) > MOST_ROWS:
                raise ValueError(f"it has more than {MOST_ROWS} rows")
            rows += batch.select(wanted).to_pylist() if wanted else [{}] * len(batch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ManifestError(f"{uri}: cannot be read as Arrow ({error})") from error
    return clips_of_rows(file, uri, schema, rows, split)
