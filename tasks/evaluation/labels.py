"""Which labels an evaluation can use: clips and classes that say nothing about an encoder are left out, and named.

A clip without a label is no negative example: nobody has said what is heard in it. A class is left out of the probes'
metrics where no training clip has it (no probe can know it), and where no test clip or every test clip has it (there
is nothing to rank).

Legend: B clips, K classes.
"""

from collections.abc import Sequence

import numpy as np

from sepscene.tasks.evaluation.metrics import Bools, NothingToEvaluate

_LISTED = 8


def labelled(targets_BK: Bools, part: str = "all") -> Bools:
    """Which clips have a label, (B,); `part` names these clips in the message, e.g. "test".

    Raises:
        NothingToEvaluate: fewer than two have one.
    """
    labelled_B: Bools = np.any(targets_BK, axis=1)
    if labelled_B.sum() < 2:
        raise NothingToEvaluate(
            f"{labelled_B.sum()} of {len(labelled_B)} {part} clips have a label: an evaluation needs at least 2; "
            "see the labels with `sepscene data audit`"
        )
    return labelled_B


def unlabelled_notes(**parts: Bools) -> tuple[str, ...]:
    """What a report says of the clips without a label; `parts` are the results of `labelled` by name."""
    return tuple(
        f"left out, without a label: {(~labelled_B).sum()} of {len(labelled_B)} {part} clips"
        for part, labelled_B in parts.items()
        if not labelled_B.all()
    )


def targets_of_probes(targets_BK: Bools, classes: Sequence[str], trained_BK: Bools) -> tuple[Bools, list[str]]:
    """The targets by which probes are scored, and why some classes are left out of them.

    Args:
        targets_BK: bool, of the test clips of one fold.
        classes: K names.
        trained_BK: bool, which classes had a training clip.

    Returns:
        bool (B, K), all false for a class that is left out; a note for each reason.

    Raises:
        NothingToEvaluate: when every class is left out.
    """
    heard_K = np.any(targets_BK, axis=0)
    everywhere_K = np.all(targets_BK, axis=0)
    trained_K = np.any(trained_BK, axis=0)
    reasons = {
        "no positive test clip": ~heard_K,
        "no positive training clip": heard_K & ~trained_K,
        "every test clip has it, so there is nothing to rank": everywhere_K & trained_K,
    }
    notes = [f"left out, {why}: {listed(classes, out_K)}" for why, out_K in reasons.items() if out_K.any()]
    known_K = heard_K & trained_K & ~everywhere_K
    if not known_K.any():
        raise NothingToEvaluate(f"no class can be evaluated; {'; '.join(notes)}: check the labels and the splits")
    return targets_BK & known_K, notes


def listed(classes: Sequence[str], chosen_K: Bools) -> str:
    """The names of some classes, the first few if they are many."""
    names = np.array(classes)[chosen_K].tolist()
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
