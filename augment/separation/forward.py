"""One forward pass of a separator at a time: always the same shape, and on a GPU beside the host's own work.

Shapes: B clips of a pass, S channels, T samples.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sepscene.augment.views import from_pcm

Result = Callable[[], np.ndarray]
"""Waits for a pass and gives separated_BST, float32."""


class Forward:
    """Passes clips through separators, each pass with exactly `clips` of them.

    Short passes are padded with silence: matrix kernels round differently for other shapes, and a view must not
    depend on its neighbours.

    On a GPU, clips go there and come back through pinned memory, on a stream for each way, so that copies overlap with
    the networks and with each other, and `submit` returns before the pass is done, so that the host crops and stores
    the pass before it meanwhile. (Written for CUDA, not yet measured on one.)
    """

    def __init__(self, device: str, clips: int) -> None:
        """Args:
        device: where the separators are, e.g. "cpu" or "cuda".
        clips: clips of every pass. One is best on a CPU; a GPU wants several.
        """
        self.device = torch.device(device)
        self.clips = clips
        on_gpu = self.device.type == "cuda"
        self.streams = (torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)) if on_gpu else None

    def submit(self, separator: nn.Module, pcm_BT: np.ndarray) -> Result:
        """Start a pass.

        Args:
            separator: maps wave_BT to separated_BST.
            pcm_BT: int16, at most `clips` of them.
        """
        wave_BT = np.zeros((self.clips, pcm_BT.shape[1]), np.float32)
        wave_BT[: len(pcm_BT)] = from_pcm(pcm_BT)
        if self.streams is None:
            with torch.inference_mode():
                separated_BST = separator(torch.from_numpy(wave_BT))[: len(pcm_BT)].float().numpy()
            return lambda: separated_BST
        return self._submit(separator, torch.from_numpy(wave_BT), len(pcm_BT), *self.streams)

    def _submit(
        self, separator: nn.Module, wave_BT: Tensor, count: int, there: torch.cuda.Stream, back: torch.cuda.Stream
    ) -> Result:
        compute = torch.cuda.current_stream(self.device)
        with torch.inference_mode():
            with torch.cuda.stream(there):
                there_BT = wave_BT.pin_memory().to(self.device, non_blocking=True)
            compute.wait_stream(there)
            there_BT.record_stream(compute)
            separated_BST = separator(there_BT)[:count].float()
            back.wait_stream(compute)
            with torch.cuda.stream(back):
                back_BST = torch.empty(separated_BST.shape, pin_memory=True)
                back_BST.copy_(separated_BST, non_blocking=True)
                separated_BST.record_stream(back)
                done = back.record_event()

        def result() -> np.ndarray:
            done.synchronize()
            return back_BST.numpy()

        return result
