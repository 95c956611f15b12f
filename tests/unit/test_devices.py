"""Number of processes and first rank, as far as the environment and the config tell."""

import os
import platform
import subprocess
import sys

import pytest

from helpers.configs import configure
from tricklab import devices
from tricklab.cli.start import count_processes
from tricklab.devices import count_memory, free_memory, is_first, world_size

TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "size", "first"),
    [
        ({}, 1, True),
        (TORCHRUN | {"RANK": "1", "WORLD_SIZE": "2"}, 2, False),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, 1, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 4, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 1, True),
        ({"LOCAL_RANK": "1", "PROCESSES_OF_RUN": "3"}, 3, False),
    ],
)
def test_world_size_and_first_rank_come_from_the_environment(monkeypatch, environment, size, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert world_size() == size
    assert is_first() == first


@pytest.mark.parametrize(
    ("cgroups", "limits", "memory"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "2048"}, 2048),
        ("0::/a", {"memory.max": "300", "a/memory.max": "4096"}, 300),
        ("9:cpu,memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "500"}, 500),
        ("9:cpu:/a\n0::/", {"memory/a/memory.limit_in_bytes": "500"}, None),
        ("0::/", {}, None),
        (None, {}, None),
    ],
)
def test_memory_is_limited_by_cgroups(tmp_path, monkeypatch, cgroups, limits, memory):
    if cgroups is not None:
        (tmp_path / "self").write_text(f"{cgroups}\n")
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit}\n")
    monkeypatch.setattr(devices, "CGROUPS", tmp_path / "self")
    monkeypatch.setattr(devices, "CGROUP_ROOT", tmp_path)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert count_memory() == (memory or machine)


def test_free_memory_is_what_the_system_tells_at_most(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr("tricklab.devices.MEMINFO", meminfo)
    assert free_memory() == count_memory()
    meminfo.write_text("MemTotal:       99 kB\nMemAvailable:      12 kB\n")
    assert free_memory() == 12 * 1024


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [
        ((), 1),
        (("trainer.devices=2", "trainer.num_nodes=3"), 6),
        (("trainer.devices=[0,3]",), 2),
        (("trainer.devices='0,3'",), 2),
        (("trainer.devices='3'",), 3),
        (("trainer=ddp", "trainer.accelerator=cpu"), 1),
        (("trainer=ddp",), None),
        (("trainer.devices=-1",), None),
    ],
)
def test_count_devices_is_none_where_the_machine_decides(overrides, devices):
    assert count_processes(configure(*overrides).trainer) == devices


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_freed_tensors_is_used_again(tmp_path):
    """64 MB are mapped once, not for each tensor."""
    program = """
import resource, torch
from tricklab.devices import keep_freed_memory
def count_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
count_faults()
print(count_faults())
keep_freed_memory()
for _ in range(6):
    count_faults()  # the heap grows at first
print(count_faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < 50
    assert before > 10 * after
