"""Train, test and record one run: `python train.py scheduler=cosine mixup=on`; `--help` lists the options."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tricklab import cli, process


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    run = HydraConfig.get()
    folder, words = Path(run.runtime.output_dir), cli.list_overrides(run)
    with cli.one_line():
        if (
            run.mode == RunMode.MULTIRUN
        ):  # a launcher other than the local one has placed the job here
            return process.be_placed(words, folder, cfg)
        from tricklab import (
            experiment,
        )  # takes seconds, so not before the options are known to be right

        return experiment.run(cfg, folder, words, run.runtime.choices)


if __name__ == "__main__":
    cli.launch(main)
