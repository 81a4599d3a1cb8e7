"""What a name may mean: a repository of the hub, a path, or a slip for a name that is known here."""

import difflib
import re
from collections.abc import Iterable

from labkit.hub.causes import HubError
from labkit.hub.snapshots import Repository, cached

_PATH_LIKE = re.compile(r"^([./~]|[A-Za-z]:)|\\")
_ALIKE = 0.75  # difflib's ratio, above which a name without "/" is taken for a slip


def repository(kind: str, text: str, known: Iterable[str] = ()) -> Repository:
    """The repository of `name` or `organisation/name`, both with `@revision` if wanted.

    HubError for what looks like a path or can be no id, and for a name close to one of `known`: the hub is not asked.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = text.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if not name or ".." in revision or _PATH_LIKE.search(text):
        raise HubError("it is neither a path that is there, nor a hub id")
    found = Repository(kind, name, revision or "main")
    close = [] if "/" in name else difflib.get_close_matches(name.lower(), list(known), 1, _ALIKE)
    if close and not cached(found):
        raise HubError(f"there is no such name (did you mean {close[0]!r}?)")
    return found
