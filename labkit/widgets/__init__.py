"""Widgets of the labs. They only call figures and meters; there is no arithmetic here."""

from labkit.widgets.live import LiveFigure, observe_safely

__all__ = ["LiveFigure", "observe_safely"]
