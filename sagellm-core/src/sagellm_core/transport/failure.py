"""What is said of a core that ended: the root cause, whether it raised, exited or was killed."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .messages import Failed

_HINTS = {
    signal.SIGKILL: "; if nobody did that, the system ran out of memory: lower kv_cache_memory_bytes or max_num_seqs",
}


def failure_of(error: BaseException) -> Failed:
    """The message that an exception in the core becomes."""
    if isinstance(error, SageLLMError):
        return Failed(error.code.value, error.message, error.param)
    what = str(error) or "no message"
    return Failed(ErrorCode.INTERNAL.value, f"the engine core failed: {type(error).__name__}: {what}")


def describe_exit(returncode: int, last_lines: Sequence[str]) -> str:
    """What is known of a child that ended unasked.

    Args:
        returncode: As ``subprocess`` reports it: negative for a signal.
        last_lines: What it wrote last.
    """
    if returncode < 0:
        number = -returncode
        known = number in {member.value for member in signal.Signals}
        name = signal.Signals(number).name if known else "unknown"
        how = f"was killed by signal {number} ({name}){_HINTS.get(signal.Signals(number), '') if known else ''}"
    else:
        how = f"exited with code {returncode}"
    wrote = " | ".join(line for line in last_lines if line.strip())
    return f"the engine core process {how}" + (f"; it last wrote: {wrote}" if wrote else "")
