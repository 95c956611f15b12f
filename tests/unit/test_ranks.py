"""The thread that watches the other processes of a run."""

import subprocess
import sys

# The thread is inside of torch's store, for a second, when the run ends
SLOW_STORE = """
import time
from datetime import timedelta
from tricklab.run import ranks

def ask_for_a_second():
    try:
        ranks.connect().wait(["never"], timedelta(seconds=1))
    except RuntimeError:
        return ""

ranks.read_failure = ask_for_a_second
watch = ranks.Watch(print)
time.sleep(0.7)
watch.stop()
assert not watch.threads[0].is_alive()
"""


def test_watch_that_is_stopped_does_not_abort_the_process(monkeypatch):
    """Torch's C++ code does not survive the end of Python in another thread."""
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "0"}
    for name, value in (environment | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SLOW_STORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr
