"""What runs inside a notebook: set-up, results, guesses to reveal, claims, checks of exercises, the map of labs."""

from labkit.lab.checks import check_number
from labkit.lab.claims import Claims
from labkit.lab.map import map_of_labs
from labkit.lab.results import emit
from labkit.lab.reveal import guess, show, table
from labkit.lab.setup import setup

__all__ = ["Claims", "check_number", "emit", "guess", "map_of_labs", "setup", "show", "table"]
