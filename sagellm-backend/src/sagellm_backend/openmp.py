"""How OpenMP's threads wait for each other; to be settled before torch loads the runtime.

Knows nothing of tensors.
"""

from __future__ import annotations

import os

_SPIN = "GOMP_SPINCOUNT"
_USERS_CHOICE = (_SPIN, "OMP_WAIT_POLICY")
SPIN_COUNT = 1000
"""Turns, of tens of cycles each: some ten microseconds, longer than the gap between two operations of a layer."""


def wait_briefly() -> None:
    """Let a thread that waits at a barrier sleep soon, unless the user has said how it shall wait.

    By default libgomp's threads spin for milliseconds. That is right on a machine of our own. On a shared one the
    thread that is waited for often has no processor because those that wait keep it, and every barrier costs a time
    slice: with two neighbours on two cores, decoding got ten times slower. Has no effect once libgomp is loaded.
    """
    if not any(name in os.environ for name in _USERS_CHOICE):
        os.environ[_SPIN] = str(SPIN_COUNT)
