"""The hub: whether it answers, whether a token is set, what its cache holds. Labs run without it."""

import threading
from pathlib import Path

from labkit.doctor.check import Check
from labkit.units import format_bytes

ANSWER_SECONDS = 2.0
"""Several times what the public hub takes, and with the import of the HTTP library still about 3 s."""
_OFFLINE = "Labs run offline; only models and data sets of the hub that are not cached need it."


def hub() -> Check:
    """One check, never worse than a warning. The token is looked for, never shown."""
    from huggingface_hub import constants, get_token

    token = "a token is set" if get_token() else "no token"
    held = f"{token}; the cache holds {_cached()}"
    if constants.HF_HUB_OFFLINE:
        return Check("hub", "ok", f"offline, as HF_HUB_OFFLINE says; {held}")
    problem = _problem()
    if problem:
        return Check("hub", "warn", f"{problem}; {held}", _OFFLINE)
    return Check("hub", "ok", f"{constants.ENDPOINT} answers; {held}")


def _cached() -> str:
    from huggingface_hub import constants

    from labkit.hub import cached_ids

    blobs = [blob for blob in Path(constants.HF_HUB_CACHE).glob("*/blobs/*") if blob.is_file()]
    models, datasets = (len(cached_ids(kind)) for kind in ("model", "dataset"))
    size = format_bytes(sum(blob.stat().st_size for blob in blobs))
    return f"{models} models and {datasets} data sets, {size}"


def _problem() -> str | None:
    """Why the hub's address gives no sound answer, or None; within ANSWER_SECONDS, whatever hangs."""
    from huggingface_hub import constants, get_session

    from labkit.hub import Repository
    from labkit.hub.causes import cause_of

    answers: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS).status_code
            answers.append(f"{constants.ENDPOINT} is failing (HTTP {status})" if status >= 500 else None)
        except Exception as error:
            answers.append(cause_of(error, Repository("model", "any")))

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no limit: the thread is left behind
    asking.start()
    asking.join(ANSWER_SECONDS)
    return answers[0] if answers else f"{constants.ENDPOINT} does not answer within {ANSWER_SECONDS} s"
