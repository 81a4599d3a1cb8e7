"""The errors a reader may see. Each message restates the request, the cause and the remedy in a sentence or two.

The command prints the message alone, never a traceback, and exits with the class's `exit_code`
(2: the request was wrong; 1: a lab, check, claim or limit failed).
"""


class LabkitError(Exception):
    """Base of every error whose message is meant for the reader."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RequestError(LabkitError, ValueError):
    """What was asked for cannot be: an unknown key, a wrong type, an impossible value, a missing file."""

    exit_code = 2


class ModelNotAvailable(RequestError):
    """A model that can neither be found nor be built here."""


class LabFailed(LabkitError):
    """A lab stopped: a cell raised, was left unrun, ran out of time, or its kernel died."""
