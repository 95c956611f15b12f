"""Train, test and record one run: `python train.py scheduler=cosine mixup=on`.

`--help` lists the options.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tricklab.cli.launch import exit_with_message, launch
from tricklab.cli.overrides import list_overrides
from tricklab.jobs.process import run_launched_job


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    run = HydraConfig.get()
    folder = Path(run.runtime.output_dir)
    overrides = list_overrides(run)
    with exit_with_message():
        if run.mode == RunMode.MULTIRUN:
            # A launcher other than the local one has started the job here
            return run_launched_job(overrides, folder, cfg)
        # Takes seconds to import, so only after the config was checked
        from tricklab.run import experiment

        return experiment.run(cfg, folder, overrides, run.runtime.choices)


if __name__ == "__main__":
    launch(main)
