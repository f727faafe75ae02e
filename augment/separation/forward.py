"""Forward passes of separators: always with the same shape, and asynchronous on a GPU.

Shapes: B clips of a pass, S channels, T samples.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sepscene.augment.views import from_pcm

Result = Callable[[], np.ndarray]
"""Waits for a pass and returns separated_BST, float32."""


class Forward:
    """Runs separators on batches of exactly `clips` clips.

    Smaller batches are padded with silence: matrix kernels round differently for other shapes, and a view must not
    depend on the other clips of its batch.

    On a GPU, clips are copied through pinned memory, with one stream per direction, so that copies overlap with the
    network and with each other. `submit` returns before the pass is finished, so that the host can crop and store the
    previous pass in the meantime. (Written for CUDA; speed not yet measured there.)
    """

    def __init__(self, device: str, clips: int) -> None:
        """Args:
        device: device of the separators, e.g. "cpu" or "cuda".
        clips: clips per pass. One is best on a CPU; a GPU needs several.
        """
        self.device = torch.device(device)
        self.clips = clips
        on_gpu = self.device.type == "cuda"
        self.streams = (torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)) if on_gpu else None

    def submit(self, separator: nn.Module, pcm_BT: np.ndarray) -> Result:
        """Start a pass.

        Args:
            separator: maps wave_BT to separated_BST.
            pcm_BT: int16, at most `clips` clips.
        """
        wave_BT = np.zeros((self.clips, pcm_BT.shape[1]), np.float32)
        wave_BT[: len(pcm_BT)] = from_pcm(pcm_BT)
        if self.streams is None:
            with torch.inference_mode():
                separated_BST = separator(torch.from_numpy(wave_BT))[: len(pcm_BT)].float().numpy()
            return lambda: separated_BST
        return self._submit(separator, torch.from_numpy(wave_BT), len(pcm_BT), *self.streams)

    def _submit(
        self, separator: nn.Module, wave_BT: Tensor, count: int, upload: torch.cuda.Stream, download: torch.cuda.Stream
    ) -> Result:
        compute = torch.cuda.current_stream(self.device)
        with torch.inference_mode():
            with torch.cuda.stream(upload):
                device_BT = wave_BT.pin_memory().to(self.device, non_blocking=True)
            compute.wait_stream(upload)
            device_BT.record_stream(compute)
            separated_BST = separator(device_BT)[:count].float()
            download.wait_stream(compute)
            with torch.cuda.stream(download):
                host_BST = torch.empty(separated_BST.shape, pin_memory=True)
                host_BST.copy_(separated_BST, non_blocking=True)
                separated_BST.record_stream(download)
                done = download.record_event()

        def result() -> np.ndarray:
            done.synchronize()
            return host_BST.numpy()

        return result
