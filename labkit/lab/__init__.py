"""What runs inside a notebook: set-up, results, guesses to reveal, claims, and checks of exercises."""

from labkit.lab.checks import check_number
from labkit.lab.claims import Claims
from labkit.lab.results import emit
from labkit.lab.reveal import guess, show, table
from labkit.lab.setup import setup

__all__ = ["Claims", "check_number", "emit", "guess", "setup", "show", "table"]
