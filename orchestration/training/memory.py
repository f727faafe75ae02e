"""A batch that the memory does not hold ends a stage at once, with advice: to try again would end the same way."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.files import write_whole
from sepscene.orchestration.records.run_folder import StageFolder

_WORDS_OF_A_CPU = "DefaultCPUAllocator: can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError; for devices it has a class of its own."""


def out_of_memory(error: BaseException, advice: str) -> str:
    """What failed and what to do, for an error that says that a device's memory is full; empty for any other."""
    if not isinstance(error, torch.OutOfMemoryError) and _WORDS_OF_A_CPU not in str(error):
        return ""
    first = str(error).strip().splitlines()[0]
    return f"the memory of the trainer's device is full ({first}); {advice}"


@contextmanager
def ends_when_memory_is_full(folder: StageFolder, advice: str) -> Iterator[None]:
    """Note the advice as what ends the stage, where the block fails for lack of memory on the device."""
    try:
        yield
    except RuntimeError as error:
        if message := out_of_memory(error, advice):
            write_whole(folder.fatal, message)
        raise


def pretraining_advice(experiment: Experiment, local_rows: int) -> str:
    """What makes a step of pre-training smaller, on a trainer with this many rows of the global batch."""
    smaller = max(1, (experiment.training.microbatch or local_rows) // 2)
    return (
        f"set training.microbatch={smaller} (the same loss over the whole batch, in smaller passes), or lower "
        "training.global_batch, or raise resources.trainers"
    )


SEPARATOR_ADVICE = "lower separator.batch_mixtures or separator.segment_seconds, or raise resources.trainers"
