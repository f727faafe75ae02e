"""Which programs the user trusts: TorchScript is code of its author, and no list of operators makes it harmless."""

from __future__ import annotations

from pathlib import Path

from sepscene.models.config import CheckpointError
from sepscene.models.trust import PROGRAMS


def require_trust(digest: str, origin: Path) -> None:
    """Refuse a program that the user doesn't trust.

    Raises:
        CheckpointError: says what trust means and how it is given.
    """
    if digest not in PROGRAMS.entries():
        raise CheckpointError(
            f"{origin} is a TorchScript program (SHA-256 {digest[:12]}…): it can read and write every file that you "
            "can. If you trust its author, import it yourself with `sepscene separator import … --trust-code`; on "
            f"another machine set {PROGRAMS.variable} to its whole SHA-256. A torch.export program (.pt2) needs no "
            "trust"
        )
