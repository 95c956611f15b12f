"""Downloads of pretrained weights that fail soon without a network."""

import os
import socket
import time

import pytest

from helpers.configs import configure
from tricklab.errors import UserError
from tricklab.run.downloads import answers, brief_downloads
from tricklab.run.weights import read_weights

PRETRAINED = ("model=torchvision", "model.weights=pretrained")


def test_answers_gives_up_on_a_silent_and_on_a_missing_server():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        assert not answers(f"http://127.0.0.1:{port}", seconds=0.2)
        assert time.monotonic() - start < 5
    assert not answers(f"http://127.0.0.1:{port}", seconds=5)


@pytest.mark.parametrize(("is_online", "offline", "timeout"), [(True, "0", 10), (False, "1", 1)])
def test_brief_downloads_use_the_cache_alone_without_a_network(
    monkeypatch, is_online, offline, timeout
):
    monkeypatch.setattr("tricklab.run.downloads.answers", lambda url: is_online)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = socket.getdefaulttimeout()
    with brief_downloads("timm"):
        assert os.environ["HF_HUB_OFFLINE"] == offline
        assert socket.getdefaulttimeout() == timeout
    assert socket.getdefaulttimeout() == before


def test_pretrained_without_a_network_names_the_option_for_a_file(monkeypatch):
    class TransportError(Exception):
        """An error of httpx, which is no OSError."""

    def fail(library, name):
        raise TransportError("no\nroute")

    monkeypatch.setattr("tricklab.run.downloads.answers", lambda url: False)
    monkeypatch.setattr("tricklab.run.weights.pretrained_weights", fail)
    with pytest.raises(UserError) as error:
        read_weights(configure(*PRETRAINED).model)
    assert str(error.value) == (
        "model.weights=pretrained of resnet18: no route; "
        "to use a file that was downloaded before: model.weights=PATH"
    )


def test_pretrained_of_torchvision_without_a_network_is_refused(monkeypatch, tmp_path):
    """An OSError of torch.hub."""

    def fail(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(UserError, match=r"model\.weights=pretrained of resnet18: no route"):
        read_weights(configure(*PRETRAINED).model)
