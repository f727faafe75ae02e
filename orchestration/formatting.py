"""Numbers and durations as text."""

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float) -> str:
    """A number with three digits and a decimal prefix, to be followed by a unit: 1.39e11 as `139 G`."""
    for scale, prefix in _SCALES:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}" if value < 999.5 * scale else f"{value / scale:,.0f} {prefix}"
    return f"{value:.3g} "


def duration(seconds: float) -> str:
    """A duration such as 12.3 s, 4 min 5 s, 3 h 20 min or 12 days 3 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24:,} days {hours % 24} h"
