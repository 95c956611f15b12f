"""Downloads that give up soon: offline, the retries of the libraries take a minute."""

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
    """Let `library` look into its cache alone where its host does not answer; elsewhere wait for it for 10 s."""
    before = socket.getdefaulttimeout()
    hub = library == "timm"  # whose weights lie on Hugging Face's
    online = answers(os.environ.get("HF_ENDPOINT", HOSTS[library]) if hub else HOSTS[library])
    if hub and not online:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is imported
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    socket.setdefaulttimeout(10 if online else 1)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether a host answers, with whatever, in that time; names may take longer to resolve than any timeout."""
    found = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds)
        except urllib.error.HTTPError:
            pass  # which is an answer
        except (OSError, ValueError):
            return
        found.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)
