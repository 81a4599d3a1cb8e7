"""Where a model comes from. `sources` resolves a name without torch; `build` makes the model."""

from labkit.models.sources import check_available, find

__all__ = ["check_available", "find"]
