"""Networks that a notebook can use alone: separators and encoders. Imports no other folder of Sepscene."""

from models.encoder import load_encoder
from models.separators import load_separator

__all__ = ["load_encoder", "load_separator"]
