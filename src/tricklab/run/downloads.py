"""Downloads with short timeouts: without a network, the retries of the libraries take a minute."""

import os
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

HOSTS = {"timm": "https://huggingface.co", "torchvision": "https://download.pytorch.org"}


@contextmanager
def brief_downloads(library: str) -> Iterator[None]:
    """Limit `library` to its cache if its host does not answer; otherwise set a timeout of 10 s."""
    before = socket.getdefaulttimeout()
    uses_hub = library == "timm"  # its weights are hosted by Hugging Face
    host = os.environ.get("HF_ENDPOINT", HOSTS[library]) if uses_hub else HOSTS[library]
    online = answers(host)
    if uses_hub and not online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's package is imported
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    socket.setdefaulttimeout(10 if online else 1)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether a host sends any response in time.

    The request runs in a thread, as resolving a host name may take longer than any timeout.
    """
    responses = []

    def request() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds)
        except urllib.error.HTTPError:
            pass  # an error code is a response, too
        except (OSError, ValueError):
            return
        responses.append(True)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(responses)
