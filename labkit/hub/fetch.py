"""What runs in the process of a download: huggingface_hub's own downloader, told not to try again at the start."""

import glob
import sys
import time

from labkit.hub.causes import BrokenOff, HubError, cause_of
from labkit.hub.snapshots import Snapshot
from labkit.units import MIB


def fetch(snapshot: Snapshot, names: list[str], patient_after_seconds: float) -> None:
    """Bring files into the cache, one by one: of a file that breaks off the library keeps nothing.

    HubError with the cause, BrokenOff if the connection is it. Before `patient_after_seconds` at the first break.
    """
    from huggingface_hub import constants, get_session, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = MIB // 64  # what it writes at a time; at 10 MiB a slow hub looks like a silent one
    repository, started = snapshot.repository, time.monotonic()

    def refuse_to_try_again(_request) -> None:
        """Called inside the library's own handling of the error after which it would ask for the rest of a file."""
        if (error := sys.exc_info()[1]) and time.monotonic() - started < patient_after_seconds:
            raise BrokenOff(cause_of(error, repository))

    get_session().event_hooks["request"].append(refuse_to_try_again)
    wanted = {"revision": snapshot.commit, "allow_patterns": [glob.escape(name) for name in names]}
    try:
        snapshot_download(repository.id, repo_type=repository.kind, max_workers=1, **wanted)
    except HubError:
        raise
    except Exception as error:  # raised as text: the library's own need not survive pickling
        if type(error) is OSError and error.errno is None:  # its check of the length, which has no class of its own
            raise HubError.other(snapshot.lacks(names)[0]) from None
        kind = HubError if isinstance(error, OSError | ValueError) else BrokenOff
        raise kind(cause_of(error, repository)) from None
