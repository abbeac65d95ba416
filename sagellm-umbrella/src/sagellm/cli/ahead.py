"""Whether a command line will load a model here, told before anything is imported that could parse it.

A wrong guess costs a process that ends unused, or a start that is a little slower; it changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

_COMMANDS = frozenset({"run", "chat", "serve", "engine"})
_ELSEWHERE = frozenset({"--url", "--attach", "--discover", "--launcher", "--engine", "--core", "--help", "-h"})
"""Options by which another process, another engine or nothing at all does the work."""


def wants_core(argv: Sequence[str]) -> bool:
    """Whether these arguments ask for a model to be loaded in a process of its own."""
    command = next((word for word in argv if not word.startswith("-")), None)
    return command in _COMMANDS and not any(word.partition("=")[0] in _ELSEWHERE for word in argv)


def core_if_wanted(argv: Sequence[str]) -> AbstractContextManager[None]:
    """Have a core's process import what it needs beside the command's own imports, where one will be wanted."""
    if not wants_core(argv):
        return nullcontext()
    try:
        from sagellm_core.ahead import core_ahead
    except ModuleNotFoundError:
        return nullcontext()  # the command says what to install
    return core_ahead()
