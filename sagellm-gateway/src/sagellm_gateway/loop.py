"""The event loop that serving runs on: libuv's, which costs a request and an event less, where the system has it.

Knows nothing of what is served.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from asyncio import run
else:
    from uvloop import run

__all__ = ["run"]
