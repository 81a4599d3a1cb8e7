"""Bytes, seconds and shares as people read them: the one place that converts. GB is 10^9 bytes, GiB is 2^30."""

KIB = 2**10
MIB = 2**20
GIB = 2**30


def axis_unit(largest_bytes: int) -> tuple[int, str]:
    """The unit for an axis that reaches `largest_bytes`: its bytes and its name, GiB or MiB."""
    return (GIB, "GiB") if largest_bytes >= GIB else (MIB, "MiB")


def format_bytes(count_bytes: int | None) -> str:
    """`1536 -> '1.5 KiB'`, three significant digits; unknown (None) is '-'."""
    if count_bytes is None:
        return "-"
    size, unit = float(count_bytes), "B"
    for name, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= scale:
            size, unit = size / scale, name
            break
    if unit == "B":
        return f"{count_bytes} B"
    digits = max(0, 2 - (len(str(int(abs(size)))) - 1))
    return f"{size:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """`0.0421 -> '42 ms'`, `75.2 -> '1 min 15 s'`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def format_share(share: float | None) -> str:
    """`0.25 -> '25%'`; unknown (None) is '-'."""
    return "-" if share is None else f"{share:.0%}"
