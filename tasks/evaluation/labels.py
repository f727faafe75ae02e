"""Select the clips and classes that can be evaluated, and list those that are left out.

A clip without a label is not a negative example: what is heard in it is unknown. A class is left out of the probes'
metrics if no training clip has it (no probe can learn it), or if no test clip or every test clip has it (there is
nothing to rank).

Legend: B clips, K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sepscene.tasks.evaluation.metrics import Bools, NothingToEvaluate

_LISTED = 8  # names that a message lists


def labelled(targets_BK: Bools, part: str) -> Bools:
    """Which clips have a label, (B,); `part` names these clips in the message, e.g. "test clips".

    Raises:
        NothingToEvaluate: fewer than two clips have a label.
    """
    labelled_B: Bools = np.any(targets_BK, axis=1)
    if labelled_B.sum() < 2:
        raise NothingToEvaluate(
            f"{labelled_B.sum()} of {len(labelled_B)} {part} have a label: an evaluation needs at least 2; "
            "list the labels with `sepscene data audit`"
        )
    return labelled_B


def unlabelled_notes(parts: Mapping[str, Bools]) -> tuple[str, ...]:
    """Notes on the clips without a label for a report; `parts` holds the results of `labelled` by name."""
    return tuple(
        f"left out, without a label: {(~labelled_B).sum()} of {len(labelled_B)} {part}"
        for part, labelled_B in parts.items()
        if not labelled_B.all()
    )


def targets_of_probes(targets_BK: Bools, classes: Sequence[str], trained_BK: Bools) -> tuple[Bools, list[str]]:
    """The targets used to score probes, and notes on the classes that are left out.

    Args:
        targets_BK: bool, of the test clips of one fold.
        classes: K names.
        trained_BK: bool, which classes had a training clip.

    Returns:
        bool (B, K), all false for a class that is left out; one note per reason.

    Raises:
        NothingToEvaluate: every class is left out.
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
    """The names of the chosen classes; only the first few if there are many."""
    names = np.array(classes)[chosen_K].tolist()
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
