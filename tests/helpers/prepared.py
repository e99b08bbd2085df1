"""Python programs that start quickly: forks of an interpreter that has imported what all of them need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How long a program may run. Seconds.
PATIENCE: Final = 60

#: For each line of stdin it runs a program in a fork, and says with which status that ended.
_SERVER: Final = """
import gc, importlib, json, os, runpy, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
gc.freeze()
for line in sys.stdin:
    program, folder, *files = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(folder)
for number, file in enumerate([os.devnull, *files]):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
sys.argv[:] = [program]
sys.path[0] = os.path.dirname(program)
runpy.run_path(program, run_name="__main__")
"""


class Interpreter:
    """A Python that waits for programs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, program: Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """What a program does, as `python PROGRAM` in a directory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        files = [folder / "stdout", folder / "stderr"]
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.start()
        try:
            print(json.dumps([program, folder, *files], default=str), file=self._process.stdin, flush=True)
            status = int(self._process.stdout.readline())
        finally:
            timer.cancel()
        return subprocess.CompletedProcess([], status, *(file.read_text(encoding="utf-8") for file in files))


@contextmanager
def prepared(*modules: str, path: Path) -> Iterator[Interpreter]:
    """An interpreter that has imported some modules, and takes warnings for errors, for the length of the block."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _SERVER, *modules],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Interpreter(process)
