"""README's commands in order, as a newcomer would type them; only shorter."""

import re
import shlex
from pathlib import Path

import pytest

from helpers.paths import ROOT

BLOCKS = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMENT = re.compile(r"\s+# .*")


class Quickstart:
    """README's commands, which are run one after the other."""

    def __init__(self, train, run_script):
        text = (ROOT / "README.md").read_text("utf-8")
        lines = "".join(BLOCKS.findall(text)).splitlines()
        self.commands = [COMMENT.sub("", line) for line in lines]
        self.train = train
        self.run_script = run_script

    def run(self, command, *extra, **placeholders):
        """Run the next command, which must be `command`, with `extra` overrides.

        Returns its output.
        """
        self.skip(command)
        for placeholder, value in placeholders.items():
            command = command.replace(placeholder, str(value))
        _, program, *overrides = shlex.split(command)
        if program == "train.py":
            done = self.train(*overrides, *extra)
        else:
            done = self.run_script(program.removeprefix("scripts/"), *overrides, *extra)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def skip(self, command):
        """Take the next command, which must be `command`, without running it."""
        assert self.commands.pop(0) == command


@pytest.fixture
def readme(train, run_script, tmp_path):
    """README's commands, in an empty folder."""
    return Quickstart(train, run_script)


@pytest.mark.xdist_group("servers")
def test_quickstart(readme, class_folders):
    readme.skip("pip install -e .")
    output = readme.run("python train.py scheduler=cosine mixup=on", "trainer.max_epochs=3")
    assert "test accuracy" in output
    (run,) = Path("runs").iterdir()
    left = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert left > {"result.json", "metrics.csv", "config.yaml", "calibration.png"}
    assert left > {"classes.csv", "confusion.csv", "confusion.png"}
    assert left > {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}

    # look before you train
    output = readme.run("python scripts/plan.py scheduler=step,cosine,wsd scheduler.warmup=10%")
    assert "plan.png" in output
    output = readme.run("python scripts/preview.py augment=medium mixup=cutmix")
    assert "preview.png" in output

    # your own photographs
    photographs = class_folders({"train": 12}).rename("photographs")
    output = readme.run(
        "python train.py data=folder data.root=PATH", "trainer.max_epochs=1", PATH=photographs
    )
    assert "test accuracy" in output
    readme.skip('pip install -e ".[timm]"')
    readme.skip("python train.py data=folder data.root=PATH model=timm model.name=resnet18 \\")
    readme.skip("    model.weights=pretrained model.freeze=100% trainer.max_epochs=5")

    # a sweep and its report: a table, and a page with figures
    readme.run(
        "python train.py -m scheduler=constant,cosine mixup=off,on 'seed=range(6)' slots=2",
        "seed=range(2)",
        "trainer.max_epochs=1",
    )
    (sweep,) = Path("sweeps").iterdir()
    assert sweep.name == "digits_convnet_trainer.max_epochs-1_by_mixup_scheduler_seed"
    sweep.rename("sweeps/digits_convnet_by_mixup_scheduler_seed")
    output = readme.run("python scripts/report.py sweeps/digits_convnet_by_mixup_scheduler_seed")
    assert "mixup=on" in output

    # from one GPU to a cluster: test_ranks.py and test_launchers.py
    readme.skip("python train.py")
    readme.skip("python train.py trainer=ddp")
    readme.skip("python train.py -m seed=0,1")
    readme.skip("python train.py -m seed=0,1 hydra/launcher=ray_cluster")
    readme.skip("torchrun --nnodes=2 ... train.py trainer=ddp ...")

    # after training
    assert "test/acc" in readme.run("python scripts/evaluate.py RUN", RUN=run)
    readme.run("python scripts/evaluate.py RUN tta=8 augment=crop", RUN=run)
    output = readme.run("python scripts/evaluate.py RUN suite=ood", RUN=run)
    assert "noise" in output
    output = readme.run("python scripts/explain.py RUN", RUN=run)
    assert "explain.png: " in output
    output = readme.run("python scripts/predict.py RUN input=PATH", RUN=run, PATH=photographs)
    assert output.startswith("file,class,probability")
    readme.run("python scripts/export.py RUN", RUN=run)
    assert (run / "checkpoints" / "best.safetensors").is_file()
    readme.skip("python scripts/reproduce.py RUN")
    output = readme.run("python scripts/runs.py scheduler=cosine status=done")
    assert "1 " in output

    readme.skip('pip install -e ".[dev]" && pytest')
    assert not readme.commands
