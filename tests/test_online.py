"""Downloads that give up soon."""

import os
import socket
import time

import pytest
from helpers.configs import configure

from tricklab.errors import UserError
from tricklab.run.downloads import answers, brief_downloads
from tricklab.run.weights import read_weights


def test_answers_knows_a_listener_and_gives_up_on_a_silent_one():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        assert not answers(f"http://127.0.0.1:{port}", seconds=0.2)
        assert time.monotonic() - start < 5
    assert not answers(f"http://127.0.0.1:{port}", seconds=5)


@pytest.mark.parametrize("there", [True, False])
def test_brief_downloads_look_into_the_cache_alone_without_an_answer(monkeypatch, there):
    monkeypatch.setattr("tricklab.run.downloads.answers", lambda url: there)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = socket.getdefaulttimeout()
    with brief_downloads("timm"):
        assert os.environ["HF_HUB_OFFLINE"] == ("0" if there else "1")
        assert socket.getdefaulttimeout() == (10 if there else 1)
    assert socket.getdefaulttimeout() == before


def test_pretrained_without_a_network_says_what_to_do(monkeypatch):
    class Strange(Exception):
        """As httpx has its own, which are no OSError."""

    def fail(library: str, name: str) -> None:
        raise Strange("no\nroute")

    monkeypatch.setattr("tricklab.run.downloads.answers", lambda url: False)
    monkeypatch.setattr("tricklab.run.weights.pretrained_weights", fail)
    with pytest.raises(UserError) as refused:
        read_weights(configure("model=torchvision", "model.weights=pretrained").model)
    assert str(refused.value) == (
        "model.weights=pretrained of resnet18: no route; "
        "to use a file that was downloaded before: model.weights=PATH"
    )
