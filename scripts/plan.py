"""Draw the LR of every step of a run, without training: plan.csv, plan.png and a chart.

python scripts/plan.py [scheduler=cosine scheduler.warmup=5ep ...]    overrides as for train.py
python scripts/plan.py scheduler=step,cosine,linear                   several plans in one figure
"""

import sys
from pathlib import Path

from tricklab.cli.compose import compose_each
from tricklab.cli.launch import launch
from tricklab.cli.overrides import title
from tricklab.files import write_text


def main() -> None:
    configs = compose_each(sys.argv[1:])

    # these import torch: takes seconds
    from tricklab.analysis.plan_chart import draw_plans, format_chart, format_csv, plan_each
    from tricklab.run.experiment import quiet_lightning

    quiet_lightning()
    lrs, summaries = plan_each(configs)
    folder = Path(next(iter(configs.values())).hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "plan.csv", format_csv(lrs))
    draw_plans(lrs, folder / "plan.png", title() or next(iter(configs)))
    print(format_chart(lrs, summaries))
    print(f"{folder}/plan.csv, {folder}/plan.png")


if __name__ == "__main__":
    launch(main, __doc__)
