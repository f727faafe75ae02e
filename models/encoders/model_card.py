"""The model card of an encoder bundle: how the encoder was trained, its metrics, and how to use it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sepscene.models.encoders.encoder import EncoderConfig

FACTS = ("data", "separator", "combination", "losses", "start", "steps", "seed")


def model_card(config: "EncoderConfig", card: dict[str, Any]) -> str:
    """README.md of an encoder bundle, in the format of model hubs (YAML header, then Markdown).

    Args:
        config: the encoder's configuration.
        card: facts, see `models.encoders.encoder.save_encoder`; missing facts are reported as not recorded.
    """
    license_name = card.get("license") or "unknown"
    front_end = config.front_end
    log_mel = f"log-mel with {front_end.mel_bands} bands, then " if config.reads == "log-mel" else ""
    lines = [
        "---",
        f"license: {license_name}",
        "library_name: sepscene",
        "tags: [audio, self-supervised, embedding]",
        "---",
        "",
        f"# {card.get('title') or 'Sepscene encoder'}",
        "",
        f"Maps mono sound at {front_end.sample_rate} Hz (float, full scale 1) to a representation h of "
        f"{config.embedding_dim} numbers: {log_mel}{config.trunk.description}. The h of a clip is the mean over "
        f"patches of at most {config.patch_seconds:g} s.",
        "",
        "```python",
        "from sepscene import load_encoder",
        'h_BD = load_encoder("this folder or an MLflow URI")(wave_BT)',
        "```",
        "",
        "## Training",
        "",
        *(f"- {fact}: {_plain(card[fact]) if fact in card else 'not recorded'}" for fact in FACTS),
        "",
        "## Metrics",
        "",
        *_metrics(card.get("metrics") or {}),
        "",
        "## Versions",
        "",
        *(f"- {name}: {version}" for name, version in (card.get("versions") or {}).items()),
        "",
        "## License",
        "",
        license_name if card.get("license") else "Unknown: ask the author of this encoder before you redistribute it.",
    ]
    if card.get("notes"):
        lines += ["", "## Notes", "", str(card["notes"])]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    """A list as comma-separated text, anything else as its text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _metrics(metrics: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the metrics with their intervals."""
    if not metrics:
        return ["None recorded."]
    rows = ["| metric | value | interval |", "|---|---|---|"]
    for name, metric in metrics.items():
        known = metric.get("low") is not None and metric.get("high") is not None
        interval = f"{metric['low']:.4f} to {metric['high']:.4f}" if known else "not recorded"
        rows.append(f"| {name} | {metric['value']:.4f} | {interval} |")
    return rows
