"""Scripts in a forked process that has imported their libraries: as in a new one, but in 0.1 s."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (
    "pytorch_lightning",
    "torchvision",
    "sklearn.datasets",
    "scipy.stats",
    "wandb",
    "hydra.main",
    "matplotlib.figure",
)
FORK_FOR_EACH_LINE = """
import atexit, gc, importlib, json, os, runpy, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # otherwise the end of each child copies all pages with objects
for line in sys.stdin:
    folder, environment, files, *sys.argv = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        python_path = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [os.path.dirname(sys.argv[0]), *python_path]
        for number, file in enumerate(files[:3]):
            os.dup2(os.open(file, os.O_CREAT | os.O_RDWR), number)
        atexit.register(lambda: print(*sys.modules, file=open(files[3], "w")))
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Output(NamedTuple):
    """Exit code and output of a script; from a `ForkServer` also the modules it had imported."""

    returncode: int
    stdout: str
    stderr: str
    modules: frozenset[str] = frozenset()


class ForkServer:
    """A process that has imported some modules and forks one for each script."""

    def __init__(self, *modules: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK_FOR_EACH_LINE, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, files: Path, folder: Path, *command: str, env: dict[str, str], terminal: str = ""
    ) -> Output:
        """Run a script in a folder.

        Its standard streams are files in the folder `files`, or a terminal if one is given.
        """
        streams = [terminal or str(files / name) for name in ("in", "out", "err")]
        request: list[Any] = [str(folder), env, [*streams, str(files / "modules")], *command]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())  # type: ignore[union-attr]
        modules = frozenset((files / "modules").read_text().split())
        if terminal:
            return Output(code, "", "", modules)
        stdout = (files / "out").read_text("utf-8")
        stderr = (files / "err").read_text("utf-8")
        return Output(code, stdout, stderr, modules)

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
