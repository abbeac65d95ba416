"""A Python environment for one peer, made once: what is installed there disturbs nothing else.

Knows nothing of peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import PeerError

_SHOWN_LINES = 5
"""Of what a failed command wrote."""


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end; what it wrote to standard output.

    Raises:
        PeerError: It could not be started, or did not exit with 0.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PeerError(f"{command[0]}: {error}") from error
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        last = " / ".join(said[-_SHOWN_LINES:])
        raise PeerError(f"`{' '.join(map(str, command[:4]))} …` exited with {done.returncode}: {last}")
    return done.stdout


class Environment:
    """A virtual environment in ``folder``, made by the Python that runs this."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = folder / "installed.json"
        self.python = folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether an :meth:`install` has come to its end."""
        return self._stamp.exists()

    def create(self) -> None:
        """Make it, empty but for pip, unless it is there."""
        if not self.python.exists():
            print(f"setting up {self._folder}", file=sys.stderr, flush=True)
            venv.create(self._folder, with_pip=True)

    def install(self, *steps: Sequence[str]) -> None:
        """Install, unless the same has been installed before.

        Args:
            steps: Arguments of one ``pip install`` each, in order; each may replace what those before it brought.

        Raises:
            PeerError: The environment or a step failed.
        """
        wanted = [list(step) for step in steps]
        if self.installed and json.loads(self._stamp.read_text()) == wanted:
            return
        self.create()
        for step in wanted:
            run([self.python, "-m", "pip", "install", "--quiet", *step])
        self._stamp.write_text(json.dumps(wanted))

    def versions(self, *names: str) -> list[str]:
        """Versions of installed packages."""
        code = f"from importlib.metadata import version\nfor name in {names!r}: print(version(name))"
        return run([self.python, "-c", code]).split()
