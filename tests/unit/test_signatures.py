"""Arguments as read from the source, against those of the imported class or function."""

import inspect
import re

import pytest
import pytorch_lightning as pl
from hydra.utils import get_object

from helpers.paths import CONF
from tricklab.cli.signatures import read_signature

IN_CONF = {
    target
    for path in CONF.rglob("*.yaml")
    if "hydra" not in path.parts
    for target in re.findall(r"^ *_target_: ([\w.]+)", path.read_text("utf-8"), re.MULTILINE)
}
OF_LIBRARIES = {
    *(f"torch.optim.{name}" for name in ("Adam", "RMSprop", "NAdam", "sgd.SGD")),
    *(f"torch.nn.{name}" for name in ("NLLLoss", "MultiMarginLoss", "KLDivLoss")),
    *(f"pytorch_lightning.callbacks.{name}" for name in pl.callbacks.__all__),
    "pytorch_lightning.loggers.CSVLogger",
}


@pytest.mark.parametrize("target", sorted(IN_CONF | OF_LIBRARIES))
def test_signature_equals_that_of_the_imported_object(target):
    read = read_signature(target)
    defined = inspect.unwrap(get_object(target))  # without the decorator that makes it an option
    actual = inspect.signature(defined).parameters
    kinds = {parameter.kind for parameter in actual.values()}
    if not actual and read is None:
        return  # it has no __init__ of its own
    named = {
        name: parameter
        for name, parameter in actual.items()
        if parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }
    assert read is not None
    assert set(read.arguments) == set(named)
    assert read.has_kwargs == (inspect.Parameter.VAR_KEYWORD in kinds)
    for name, default in read.arguments.items():
        assert default in (None, named[name].default)


@pytest.mark.parametrize(
    "target", ["", "torch", "torch.nope.x", "a.b", "torch..optim", "torch.nn."]
)
def test_signature_of_a_missing_name_is_none(target):
    assert read_signature(target) is None


def test_signature_follows_imports(tmp_path, monkeypatch):
    package = tmp_path / "made_up"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import *\nfrom made_up.inner.b import f as g")
    (package / "inner" / "__init__.py").write_text("from .b import C\nother = C\n")
    (package / "inner" / "b.py").write_text(
        "class A:\n"
        "  def __init__(self, x, *, y=3): ...\n"
        "class C(A): ...\n"
        "def f(z=-1, **more): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("made_up.C", "made_up.inner.C", "made_up.inner.b.C", "made_up.inner.other"):
        assert read_signature(name) == ({"x": None, "y": 3}, False)
    assert read_signature("made_up.g") == ({"z": -1}, True)
