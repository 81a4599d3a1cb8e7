"""Widgets of the labs. They only call figures and meters; there is no arithmetic here."""

from labkit.widgets.live import LiveFigure, observe_safely
from labkit.widgets.panel import Panel, panel

__all__ = ["LiveFigure", "Panel", "observe_safely", "panel"]
