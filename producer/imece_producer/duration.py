"""Durations in words."""


def seconds(value: float | None) -> str:
    """`850 ms`, `4.2 s`, `3 min 12 s`, `2 h 05 min`."""
    if value is None:
        return "unknown"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
