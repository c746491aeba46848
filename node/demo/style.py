"""How the demo writes numbers, names and colours, on the screen and in the report."""

from __future__ import annotations

from rich.text import Text

COLOURS = ("#4cc38a", "#5ea9ff", "#f5a524", "#d478e8", "#f76d6d", "#5fd3d8", "#c8d65e", "#b49cff")
"""One per node, in order; told apart on a dark and on a light ground."""
MUTED, GOOD, BAD, ACCENT = "grey58", "#56d364", "#f76d6d", "bold"


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def plain(text: str, limit: int = 200) -> str:
    """A text from elsewhere: one bounded line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()


def percent(value: float | None) -> str:
    return "·" if value is None else f"{100 * value:.0f}"


def change(value: float | None, since: float | None) -> Text:
    """ "52 ↑21", "52 ↑ 4": per cent, and percentage points since the start."""
    if value is None:
        return Text("·", MUTED)
    if since is None:
        return Text(percent(value))
    points = round(100 * value) - round(100 * since)
    tone = GOOD if points >= 5 else BAD if points <= -5 else MUTED
    arrow = "↑" if points > 0 else "↓" if points < 0 else "="
    return Text.assemble((percent(value), ""), (f" {arrow}{abs(points) or '':>2}", tone))


def count(number: float) -> str:
    """At most four characters: 950, 9.5k, 95k, 1.2M."""
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(number) < limit:
            scaled = number / divisor
            return f"{scaled:.1f}{unit}" if unit and abs(scaled) < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number / 1e9:.0f}G"


def clock(seconds: float) -> str:
    """ "3:07"."""
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def duration(seconds: float) -> str:
    """ "3 min 07 s", "42 s"."""
    whole = round(max(0.0, seconds))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
