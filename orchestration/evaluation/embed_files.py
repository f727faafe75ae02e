"""`sepscene embed`: embeddings of the user's sound files, computed on this machine or as a batch job on a cluster.

Shapes: N files, D embedding.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sepscene.augment.locations import as_utf8, is_utf8, local_path
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import Encoder
from sepscene.orchestration.data_config import DataFormat
from sepscene.orchestration.evaluation.embedding_writer import EmbeddingOutput
from sepscene.orchestration.evaluation.file_encoder import FileEmbedding, FileEncoder, encoder_digest
from sepscene.orchestration.terminal import Terminal
from sepscene.tasks.datasets.readers import read_manifest
from sepscene.tasks.datasets.root import AUDIO_SUFFIXES, Root
from sepscene.tasks.datasets.survey import NOT_UTF8, LeftOut, Skipped
from sepscene.tasks.datasets.tables import first_row

FILES_PER_PART = 256
"""Files per part of the output: at most this many are embedded again after a crash."""

FILES_PER_CALL = 8
"""Files per actor call on a cluster: enough for a batch, few enough to distribute over the actors."""

Embedder = Callable[[list[str]], Iterable[FileEmbedding]]
"""Embeds files, given by their URIs."""


@dataclass(frozen=True)
class EmbedReport:
    """The result of a call of `embed_files`.

    Attributes:
        out: the file with the embeddings.
        written: number of rows that this call added.
        skipped: number of inputs that OUT or its parts already contained.
        bad: URI -> what is wrong with the file; the command exits with 3 if there are any.
        left_out: files in the folders that were not embedded, by reason.
    """

    out: Path
    written: int
    skipped: int
    bad: dict[str, str]
    left_out: tuple[Skipped, ...] = ()


def embed_files(
    encoder: Encoder, inputs: list[str], out: Path, embedder: Embedder, show_progress: bool = True
) -> EmbedReport:
    """Embed the files that OUT lacks and write their rows in parts, so that an interrupted call keeps them.

    Args:
        encoder: that of the embedder.
        inputs: see `list_files`.
        out: see `EmbeddingOutput`.
        embedder: `FileEncoder.embed`, or from `on_cluster`.

    Raises:
        SepsceneError: when a manifest or an existing output cannot be used. Faults of single files are reported, not
            raised.
    """
    left_out = LeftOut()
    uris = list_files(inputs, left_out)
    output = EmbeddingOutput(out, encoder_digest(encoder), encoder.embedding_dim)
    todo = output.missing(uris)
    already_done = len(uris) - len(todo)
    skipped = left_out.entries()
    bad = {name: NOT_UTF8 for entry in skipped if entry.reason == NOT_UTF8 for name in entry.examples}
    part: list[FileEmbedding] = []
    written = 0

    def write_part() -> None:
        if part:
            output.add([file.uri for file in part], np.stack([file.h_D for file in part]))
            part.clear()

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True), disable=not show_progress) as progress:
        task = progress.add_task("", total=len(uris), completed=already_done)
        try:
            for file in embedder(todo):
                progress.advance(task)
                if file.fault:
                    bad[file.uri] = file.fault
                    continue
                part.append(file)
                written += 1
                if len(part) == FILES_PER_PART:
                    write_part()
        finally:
            write_part()
    output.finish()
    return EmbedReport(out, written, already_done, bad, skipped)


def on_cluster(encoder: Encoder, actors: int, gpus_per_actor: float, bfloat16: bool, readers: int) -> Embedder:
    """An embedder that distributes the files over actors on a Ray cluster; Ray must be connected.

    The encoder is sent through Ray's object store, so only this process needs access to it. The sound files must be
    accessible from every node. Rows are returned in the order in which they are finished.

    Raises:
        SepsceneError: when the actors do not fit the cluster.
    """
    import ray
    from ray.data import ActorPoolStrategy

    from sepscene.orchestration.runtime.actor_pools import finite_retries
    from sepscene.orchestration.runtime.placement import DATA_TASK_CPUS, Demand, check_placement, cluster_nodes
    from sepscene.orchestration.runtime.ray_compat import blocks_of, configure_data

    actor = Demand("embedding actor", 1.0, gpus_per_actor, fields="--actors or --gpus")
    check_placement([actor] * actors + [Demand("reader", DATA_TASK_CPUS, fields="--actors")], cluster_nodes())
    device = "cuda" if gpus_per_actor else "cpu"

    def embed(uris: list[str]) -> Iterator[FileEmbedding]:
        if not uris:
            return
        configure_data(ordered=False)
        shared = ray.put((encoder.config, encoder.trunk.state_dict()))
        locations = [os.path.abspath(uri) if local_path(uri) == uri else uri for uri in uris]
        blocks = ray.data.from_arrow(pa.table({"uri": uris, "location": locations}))
        stream = blocks.repartition(target_num_rows_per_block=FILES_PER_CALL).map_batches(
            EmbedActor,
            fn_constructor_args=([shared], device, bfloat16, readers),
            batch_size=FILES_PER_CALL,
            compute=ActorPoolStrategy(size=min(actors, math.ceil(len(uris) / FILES_PER_CALL))),
            ray_remote_args_fn=finite_retries,
            **actor.ray_options(),
        )
        for columns in blocks_of(stream):
            yield from map(FileEmbedding, map(str, columns["uri"]), map(str, columns["fault"]), columns["h"])

    return embed


class EmbedActor:
    """A `FileEncoder` as a callable for Ray Data: from blocks of URIs to blocks of embeddings and faults."""

    def __init__(self, shared: list[Any], device: str, bfloat16: bool, readers: int) -> None:
        """`shared[0]` is a reference to (EncoderConfig, state dict); Ray does not resolve references inside a list."""
        import ray

        config, state = ray.get(shared[0])
        encoder = Encoder(config)
        encoder.trunk.load_state_dict(state)
        self.file_encoder = FileEncoder(encoder, device, bfloat16, readers)

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """From the columns `uri` and `location` (the URI, a local path made absolute) to `uri`, `fault`, `h` (N, D)."""
        files = list(self.file_encoder.embed(map(str, columns["location"])))
        return {
            "uri": columns["uri"],
            "fault": np.array([file.fault for file in files], object),
            "h": np.stack([file.h_D for file in files]),
        }


def list_files(inputs: Iterable[str], left_out: LeftOut | None = None) -> list[str]:
    """The sound files that the arguments of `sepscene embed` refer to, in their order, without duplicates.

    Args:
        inputs: any of
            - files or URIs;
            - folders: the sound files that a data set of format `directory` would find in them;
            - manifests, .csv or .parquet, with a column `uri` (relative to the folder of the manifest); whole files
              are embedded;
            - data sets, e.g. huggingface:FOLDER; whole recordings are embedded;
            - "-": reads inputs from stdin, one per line.
        left_out: collects the files in folders that are skipped, by reason.

    Raises:
        SepsceneError: when a manifest cannot be read or has no column `uri`, or no file is found.
    """
    left_out = LeftOut() if left_out is None else left_out
    uris = list(dict.fromkeys(uri for text in inputs for uri in _expand(text, left_out)))
    if not uris and not left_out.count(NOT_UTF8):
        skipped = "".join(f"; left out: {entry}" for entry in left_out.entries())
        raise SepsceneError(
            f"there is no sound file to embed: folders are searched for {', '.join(AUDIO_SUFFIXES)}{skipped}"
        )
    return uris


def usable_device(device: str) -> str:
    """The torch device for the value of a `--device` option.

    Raises:
        SepsceneError: when torch does not find the GPU, or the value is not a device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device("cuda" if device == "gpu" else device)
    except RuntimeError:
        raise SepsceneError(
            f"--device {device}: torch does not know this device; use auto, cpu, gpu or e.g. cuda:1"
        ) from None
    gpus = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        found = f"torch finds {gpus} GPUs here" if gpus else "torch finds no GPU here"
        raise SepsceneError(f"--device {device}: {found}; use --device cpu")
    return str(wanted)


def _expand(text: str, left_out: LeftOut) -> Iterator[str]:
    """The sound files that one argument refers to."""
    local = local_path(text)
    path = Path(local or "")
    if text == "-":
        for line in sys.stdin:
            if line.strip() and line.strip() != "-":
                yield from _expand(line.strip(), left_out)
    elif local and path.is_dir():  # as a data set of format `directory`, but with any folders
        root = Root(local)
        for name in root.files():
            root.used.add(name)
            yield str(path / name)
        for entry in root.left_out(""):
            left_out.merge(entry)
    elif text.partition(":")[0] in get_args(DataFormat):
        format, _, folder = text.partition(":")
        manifest = read_manifest(format, folder, survey=True)
        for entry in manifest.skipped:
            left_out.merge(entry)
        yield from manifest.clips["uri"].to_pylist()
    elif text.lower().endswith((".csv", ".parquet")):
        yield from _manifest_uris(text)
    elif not is_utf8(text):
        left_out.add(NOT_UTF8, as_utf8(text))
    else:
        yield text


def _manifest_uris(text: str) -> Iterator[str]:
    """The files that the column `uri` of a manifest names, relative to its folder."""
    local = local_path(text)
    if local is not None and not os.path.exists(local):
        raise SepsceneError(f"{text} cannot be read (no such file): check the path")
    folder, name = os.path.split(text if local is None else local)
    root = Root(folder or ".")
    cells = root.table(name, ["uri"])["uri"].cast(pa.string()).to_pylist()
    for row, cell in enumerate(cells, first_row(name)):
        uri = cell.strip()
        relative = local_path(uri)
        if not uri:
            raise SepsceneError(f"{text}: row {row} has no uri: fill it, or remove the row")
        if relative is None:
            yield uri
        else:
            yield str(Path(folder) / relative) if root.is_local else root.uri(relative)
