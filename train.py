"""Train, test and record one run: `python train.py scheduler=cosine mixup=on`; `--help` lists the words."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tricklab import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    from tricklab import experiment  # takes seconds, so not before the options are known to be right

    run = HydraConfig.get()
    with cli.one_line():
        return experiment.run(cfg, Path(run.runtime.output_dir), list(run.overrides.task), run.runtime.choices)


if __name__ == "__main__":
    cli.launch(main)
