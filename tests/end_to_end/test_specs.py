"""Keys of a fork: their own ranges on the command line, and a spec that can't be parsed."""

import pytest

OWN_SCHEDULE = """# A schedule of a fork
defaults: [_options]
_target_: tricklab.scheduler.mine
_partial_: true
scale: 2.0 # [1, 5]; not the range of augment.affine.scale
size: null # {auto} or int [8, inf) or null
"""


@pytest.fixture
def answer_fork(train_without_torch, tmp_path_factory):
    """Answer overrides with `scheduler=mine`, which is in a folder of its own."""
    conf = tmp_path_factory.mktemp("fork") / "conf"
    (conf / "scheduler").mkdir(parents=True)
    (conf / "experiment").mkdir()
    experiment = "# @package _global_\n# Mine\nscheduler: { scale: 0.5 }\n"
    (conf / "experiment" / "mine.yaml").write_text(experiment)

    def answer_fork(*overrides: str, schedule: str = OWN_SCHEDULE) -> str:
        (conf / "scheduler" / "mine.yaml").write_text(schedule)
        done = train_without_torch(
            "scheduler=mine", *overrides, f"hydra.searchpath=[file://{conf}]"
        )
        assert done.returncode == 1
        assert "torch" not in done.modules
        (line,) = done.stderr.splitlines()
        return line

    return answer_fork


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("scheduler.scale=6", "scheduler.scale=6; allowed: 1 to 5"),
        ("scheduler.size=7", "scheduler.size=7; allowed: auto, or an int of 8 or more, or null."),
        ("scheduler.size=atuo", "or null. Did you mean 'auto'?"),
        ("scheduler.warmup=3", "scheduler.warmup=3 is not a duration"),
        ("experiment=mine", "scheduler.scale=0.5; allowed: 1 to 5"),
        (
            "scheduler.scale=3 augment=affine augment.affine.scale=1",
            "affine.scale=1; allowed: 0 to",
        ),
    ],
)
def test_key_of_a_fork_has_its_own_range(answer_fork, overrides, message):
    assert message in answer_fork(*overrides.split())


def test_bad_spec_of_a_fork_is_one_line(answer_fork):
    line = answer_fork(schedule=OWN_SCHEDULE.replace("[1, 5]", "1 to 5"))
    assert line.startswith("error: conf/scheduler/mine.yaml:5: '1 to 5' is not a spec. Expected")
