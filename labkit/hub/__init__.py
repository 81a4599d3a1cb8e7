"""The Hugging Face hub: what its local cache holds, what it lists, downloading, and why it cannot be had.

In order: `repository` reads a name, `cached` asks the local cache for its snapshot, `listed` asks the hub for it, and
`download` brings files of it into its folder.
"""

from labkit.hub.causes import HubError
from labkit.hub.names import repository
from labkit.hub.snapshots import Repository, Snapshot, cached, cached_ids, names_under
from labkit.hub.transfers import download, listed, require_access

__all__ = [
    "HubError",
    "Repository",
    "Snapshot",
    "cached",
    "cached_ids",
    "download",
    "listed",
    "names_under",
    "repository",
    "require_access",
]
