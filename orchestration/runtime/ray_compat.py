"""Every use of a part of Ray that Ray keeps private, with the version it was written for and when it goes."""

import time
import warnings
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

BLOCKS_A_TASK = 256
"""Blocks that a task may have made before the first is taken; Ray's default is two. But a task that draws the rows of
many would then hold its CPU, which trials share, until the last is taken: minutes, where clips are separated live. Only
such blocks come many a task, and they are small."""


class Rests(ExecutionCallback):
    """Gives the loop that drives a stream its rests: while blocks lie ready, and after a turn that has moved none.

    Ray 2.60 waits in each turn of that loop until all running tasks have something to say. Where the trainers set the
    pace, tasks with finished blocks that may not be handed on yet always have: it turned as fast as it could, on 73 %
    of a core beside two trainers that shared the rest. As long as the trainers have blocks in stock, nobody needs it;
    and the first turn that moves nothing may have a twentieth of a core, the n-th in a row an n-th of that: the longer
    a block takes, the later it may be handed on. A turn that has moved blocks is followed by the next one at once, so
    that a stream may be as fast as Ray Data can.
    """

    SHARE, LONGEST_SECONDS = 0.05, 1.0

    def __init__(self) -> None:
        self.used, self.turned = 0.0, time.monotonic()
        self.moved, self.in_vain = 0, 0
        """Blocks that any stage has taken or given; turns since the last of them."""
        self.began: float | None = None
        """When the first block was consumed."""

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data after each turn, in the loop's own thread."""
        metrics = [operator.metrics for operator in executor._topology]
        moved = sum(each.num_inputs_received + each.num_outputs_taken for each in metrics)
        due = self._stock_seconds(executor) / 2
        self.in_vain = self.in_vain + 1 if moved == self.moved else 0
        took = time.monotonic() - self.turned
        due = max(due, self.in_vain * (time.thread_time() - self.used) / self.SHARE - took)
        time.sleep(min(max(0.0, due), self.LONGEST_SECONDS))
        self.used, self.turned, self.moved = time.thread_time(), time.monotonic(), moved

    def _stock_seconds(self, executor: Any) -> float:
        """How long the finished blocks will last at the pace at which they have been consumed so far."""
        operator, state = executor._output_node
        ready = len(state.output_queue)
        consumed = operator.metrics.num_outputs_taken - ready
        if consumed <= 0:
            return 0.0
        self.began = self.began or time.monotonic()
        return ready * (time.monotonic() - self.began) / consumed


def configure_data(ordered: bool) -> None:
    """Set this process's Ray Data context: order, no progress bars of its own, and errors that stop the run."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = ordered
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    context.max_errored_blocks = 0
    context.custom_execution_callback_classes = [Rests]
    context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_A_TASK
    # Ray 2.60 deprecates the one way to make restarts finite, before there is another; pyproject.toml pins 2.60.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
