"""Embeddings of sound files of any length, with constant memory.

A long file is read in blocks of whole patches; short files share batches. While the network processes one file, the
next ones are decoded.

Shapes: P patches, T samples, D embedding.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sepscene.augment.audio import ClipError, read_blocks
from sepscene.models.encoders.encoder import MAX_BATCH_SECONDS, Encoder


class FileEmbedding(NamedTuple):
    """The result for one file."""

    uri: str
    fault: str
    """Why it could not be embedded; empty if it was."""
    h_D: np.ndarray
    """The mean over the file's patches, float32; without a meaning if there is a fault."""


@dataclass
class _OpenFile:
    """A file whose blocks are read one after the other, and the sum of the patches so far."""

    uri: str
    blocks: Iterator[np.ndarray]
    sum_D: Tensor
    patches: int = 0
    fault: str = ""

    def result(self) -> FileEmbedding:
        return FileEmbedding(self.uri, self.fault, (self.sum_D / max(1, self.patches)).float().numpy())


class FileEncoder:
    """Embeds files with one encoder. The result equals that of the encoder on the whole file, for files of any length.

    Args:
        encoder: from `models.load_encoder`.
        device: e.g. "cpu" or "cuda".
        bfloat16: run the network in bfloat16: with an error of about 1e-2, and faster on devices that support it in
            hardware.
        readers: number of files decoded ahead, each in a thread.
    """

    def __init__(self, encoder: Encoder, device: str = "cpu", bfloat16: bool = False, readers: int = 2) -> None:
        self.encoder = encoder.to(device).eval()
        if bfloat16:  # the hardware for bfloat16 is fastest with channels last
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = torch.device(device)
        self.bfloat16 = bfloat16
        self.readers = readers
        patch = Fraction(encoder.config.patch_seconds).limit_denominator(1000)
        # A block has whole patches, and whole seconds so that it starts at a sample of any rate.
        self.block_seconds = patch.numerator * max(1, MAX_BATCH_SECONDS // patch.numerator)

    def embed(self, uris: Iterable[str]) -> Iterator[FileEmbedding]:
        """The results of all files in their order, those of unreadable files with their fault."""
        files: deque[_OpenFile] = deque()
        batch: list[tuple[_OpenFile, Tensor]] = []
        for file, patches_PT in self._pieces(uris, files):
            samples = sum(waiting_PT.numel() for _, waiting_PT in batch)
            full = samples >= MAX_BATCH_SECONDS * self.encoder.sample_rate
            if batch and (full or batch[0][1].shape[1] != patches_PT.shape[1]):
                self._run(batch)
                batch = []
                while files[0] is not file:  # those before the file of this piece, which is still open
                    yield files.popleft().result()
            batch.append((file, patches_PT))
        if batch:
            self._run(batch)
        yield from map(_OpenFile.result, files)

    def _pieces(self, uris: Iterable[str], files: deque[_OpenFile]) -> Iterator[tuple[_OpenFile, Tensor]]:
        """The patches (P, T) of all files, piece by piece; each file is appended to `files` when it is opened."""
        patch = self.encoder.patch_samples
        for file, first_T in self._opened(uris):
            files.append(file)
            previous_T = np.zeros(0, np.float32)
            rest = 0
            try:
                for block_T in chain([first_T.result()], file.blocks):
                    rest = len(block_T) % patch
                    whole = len(block_T) - rest
                    if whole:
                        yield file, torch.from_numpy(block_T[:whole]).unflatten(0, (-1, patch))
                    previous_T = np.concatenate((previous_T, block_T))[-patch:]
                if rest:
                    # As in `Encoder`: the last patch ends with the file, and a short file is padded.
                    yield file, self.encoder.patches(torch.from_numpy(previous_T)[None])[0]
            except ClipError as error:
                file.fault = error.cause

    def _opened(self, uris: Iterable[str]) -> Iterator[tuple[_OpenFile, Future[np.ndarray]]]:
        """All files in order with their first block; threads decode that of the next files."""
        ahead: deque[tuple[_OpenFile, Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(self.readers, thread_name_prefix="reader") as pool:
            for uri in uris:
                blocks = read_blocks(uri, self.encoder.sample_rate, self.block_seconds)
                file = _OpenFile(uri, blocks, torch.zeros(self.encoder.embedding_dim, dtype=torch.float64))
                ahead.append((file, pool.submit(next, blocks)))
                if len(ahead) > self.readers:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()

    def _run(self, batch: list[tuple[_OpenFile, Tensor]]) -> None:
        """One forward pass for pieces with patches of the same length."""
        patches_PT = torch.cat([patches_PT for _, patches_PT in batch]).to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            h_PD = self.encoder.encode_patches(patches_PT).float().cpu()
        for (file, _), part_PD in zip(batch, h_PD.split([len(patches) for _, patches in batch]), strict=True):
            file.sum_D = file.sum_D + part_PD.double().sum(dim=0)
            file.patches += len(part_PD)


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 of the configuration and weights; only rows of encoders with the same digest are merged."""
    digest = hashlib.sha256(encoder.config.model_dump_json().encode())
    for name, tensor in encoder.trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()
