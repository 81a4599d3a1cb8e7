"""Why something of the hub cannot be had, and what to do: one clause, whatever library the failure comes from."""

import errno
import socket
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment

from labkit.errors import RequestError
from labkit.hub.snapshots import Repository

TOKEN = "set a token with `hf auth login` or HF_TOKEN"
BY_KIND = {  # the names of httpx's exceptions, whichever version of it huggingface_hub uses
    "ConnectTimeout": "does not answer",
    "ReadTimeout": "does not answer",
    "TimeoutError": "does not answer in time",
    "ReadError": "has broken off the connection",
    "WriteError": "has broken off the connection",
    "RemoteProtocolError": "has broken off the connection, or does not speak HTTP",
    "ProxyError": "is behind a proxy that refuses",
    "TooManyRedirects": "sends from one address to the next without end",
    "UnsupportedProtocol": "has an address that is none; see HF_ENDPOINT",
}


class HubError(RequestError):
    """The hub, or a file of it, cannot be had. The message is a clause: the cause and the remedy."""

    @classmethod
    def other(cls, name: str) -> "HubError":
        return cls(f"what came as {name} is not the file that the hub lists; try again")


class BrokenOff(HubError):
    """The hub has ended a download before its end, or does not go on with it."""


def cause_of(error: Exception, repository: Repository) -> str:
    """The clause for an exception of huggingface_hub or of its HTTP library."""
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    hub = f"the hub at {constants.ENDPOINT}{_by_proxy(constants.ENDPOINT)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the local cache does not hold all of it"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:  # "not here either": why it did not come
        return cause_of(error.__cause__, repository)
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repository, hub)
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | FileMetadataError):
        return f"{hub} does not answer as a hub does: HF_ENDPOINT may be wrong, or a log-in page in between"
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return f"the cache at {constants.HF_HUB_CACHE} cannot be written ({error.strerror or error})"
    return f"{hub} {_broken(error)}"


def _by_proxy(url: str) -> str:
    """A word on the proxy that the environment puts in between, if it does: it may be what fails."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    proxy = getproxies_environment().get(scheme)
    return f" (through {scheme.upper()}_PROXY)" if proxy and not proxy_bypass_environment(host) else ""


def _refusal(error, repository: Repository, hub: str) -> str:
    """The clause for an HTTP status."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    licence = f"accept the licence on {repository.page}, if there is one, and {TOKEN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{hub} has no revision {repository.revision!r} of it"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{hub} lists a file that it does not have"
    if error.response.headers.get("X-Error-Code") == "GatedRepo":
        return f"it is gated (HTTP {status}): {licence}"
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        return f"{hub} refuses the token that is set (HTTP 401): renew it with `hf auth login` or HF_TOKEN"
    if status == 401:
        return f"{hub} does not give it without a log-in, or does not have it (HTTP 401): {licence}"
    if status == 403:
        return f"{hub} refuses access (HTTP 403): {licence}"
    if status == 404:
        return f"{hub} has no such {'model' if repository.kind == 'model' else 'data set'} (HTTP 404)"
    if status == 429:
        return f"{hub} has been asked too often (HTTP 429): try later, or {TOKEN}"
    return f"{hub} is failing (HTTP {status}); try later" if status >= 500 else f"{hub} answers HTTP {status}"


def _broken(error: Exception) -> str:
    """What the hub does, for an error of the connection."""
    chain = []
    while error is not None and len(chain) < 10:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(one, socket.gaierror) for one in chain):
        return "cannot be found: its name is unknown here, so there is no network or HF_ENDPOINT is wrong"
    if any(isinstance(one, ssl.SSLError) for one in chain):
        return "cannot be trusted: its certificate is not accepted"
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    if errno.ECONNREFUSED in numbers:
        return "refuses the connection"
    if errno.ECONNRESET in numbers or errno.EPIPE in numbers:
        return "has broken off the connection"
    return BY_KIND.get(type(chain[0]).__name__, "cannot be reached")
