"""The interpreter that a core will run in: started, and told what to run as soon as that is known.

Nothing of a threaded parent is forked. Knows nothing of what the two say to each other afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BOOTSTRAP = (
    # Not -m: it would look for every module in the working folder first, where a json.py may be the user's own.
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv[1]]; "
    "from sagellm_core.transport.child import main; sys.exit(main())"
)
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""Unless the user says otherwise: starting threads that NumPy is never asked to use takes a third of its import."""


class CoreProcess:
    """A new interpreter that waits for its task.

    Args:
        prepare: ``module:function`` that it calls meanwhile.

    Attributes:
        process: The child; it ends when its standard input is closed.
    """

    def __init__(self, prepare: str | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ},
        )
        self._write({"path": sys.path, "prepare": prepare})

    def give(self, task: Mapping[str, Any]) -> None:
        """Tell it what to run; see :mod:`.child`."""
        self._write(task)

    def discard(self) -> None:
        """End it and wait until it has: it holds nothing of anyone's."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what it never read is still on its way
            self.process.stdin.close()
        self.process.stdout.close()

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already, and whoever waits on it will say why
