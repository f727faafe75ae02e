"""The model card of an encoder bundle: how the encoder was trained, its metrics, and how to use it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template

if TYPE_CHECKING:
    from sepscene.models.encoders.encoder import EncoderConfig


def model_card(config: "EncoderConfig", card: dict[str, Any]) -> str:
    """README.md of an encoder bundle, in the format of model hubs (YAML header, then Markdown).

    Args:
        config: the encoder's configuration.
        card: facts, see `models.encoders.encoder.save_encoder`; missing facts are reported as not recorded.
    """
    text = Path(__file__).with_suffix(".md.j2").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(config=config, card=card, plain=_plain)


def _plain(value: Any) -> str:
    """A list as comma-separated text, anything else as its text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
