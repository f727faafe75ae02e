"""Networks that a notebook can use alone: separators and encoders. Imports no other folder of Sepscene."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.encoder import load_encoder
    from models.separators import load_separator

__all__ = ["load_encoder", "load_separator"]


def __getattr__(name: str) -> Any:
    """Load torch only when a loader is asked for: configuration and draws live in processes that don't need it."""
    if name == "load_encoder":
        from models.encoder import load_encoder

        return load_encoder
    if name == "load_separator":
        from models.separators import load_separator

        return load_separator
    raise AttributeError(f"module models has no attribute {name!r}")
