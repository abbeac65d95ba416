"""A running engine, seen from outside: asked for tokens, its memory read, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil
from benchmarks.engine import Prompts

from .errors import PeerError

_LEAVING_S = 20.0
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Worker(Protocol):
    """One engine.

    Attributes:
        begun: When its process was started, by ``time.perf_counter``.
    """

    begun: float

    def generate(self, prompts: Prompts, tokens: int) -> float:
        """Continue all prompts at once, greedily and past any end-of-text; seconds it took.

        Raises:
            PeerError: It failed, or made another number of tokens.
        """

    def peak_mb(self) -> float:
        """MB (10^6 bytes) that its processes had resident at their highest, added up."""

    def close(self) -> None:
        """End it. Safe to call twice."""


class Process:
    """An engine's process and those it starts, as one group that is ended as one."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the process
        self.begun = time.perf_counter()
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise PeerError(f"{command[0]}: {error}") from error

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise self.failure("it closed its input") from error

    def hear(self) -> str:
        """The next line of its standard output."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            raise self.failure(f"exited with {self._child.returncode}")
        return line

    def failure(self, what: str) -> PeerError:
        """An error that quotes the last line the process wrote to standard error."""
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return PeerError(f"{what}: {said[-1][:300]}" if said else what)

    def peak_mb(self) -> float:
        """MB resident at the highest: the kernel's high-water mark of each process of the tree, added up."""
        total = 0
        root = psutil.Process(self._child.pid)
        for one in [root, *root.children(recursive=True)]:
            try:
                found = _HIGH_WATER.search(Path(f"/proc/{one.pid}/status").read_text())
            except FileNotFoundError:  # it ended meanwhile
                continue
            total += int(found.group(1)) if found else 0
        return total * 1024 / 1e6

    def close(self, *, ends_with_input: bool) -> None:
        """End the group: its input first, if it ends with that; then by signals. Safe to call twice."""
        if self._errors.closed:
            return
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            stream.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL) if ends_with_input else (signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                try:
                    os.killpg(self._child.pid, number)
                except ProcessLookupError:
                    break
            try:
                self._child.wait(_LEAVING_S)
            except subprocess.TimeoutExpired:
                continue
        self._errors.close()


class Script:
    """A worker that is a script of :mod:`.runners`: one JSON object a line, in and out.

    Args:
        python: Interpreter of the peer's environment.
        script: Name of the script in the folder ``runners``.
        options: What its ``main`` is told, as JSON in its first argument.
        env: Variables set besides those of this process.
    """

    def __init__(
        self, python: Path | str, script: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        path = Path(__file__).parent / "runners" / script
        self._process = Process([python, path, json.dumps(options)], env)
        self.begun = self._process.begun

    def generate(self, prompts: Prompts, tokens: int) -> float:
        """As :class:`Worker` has it; the time is taken within the process, around the engine's own call."""
        self._process.tell(json.dumps({"prompts": prompts, "tokens": tokens}))
        answer = json.loads(self._process.hear())
        if "error" in answer:
            raise PeerError(answer["error"])
        wanted = len(prompts) * tokens
        if answer["tokens"] != wanted:
            raise PeerError(f"made {answer['tokens']} tokens of {wanted}")
        seconds: float = answer["seconds"]
        return seconds

    def peak_mb(self) -> float:
        """As :class:`Worker` has it."""
        return self._process.peak_mb()

    def close(self) -> None:
        """As :class:`Worker` has it."""
        self._process.close(ends_with_input=True)
