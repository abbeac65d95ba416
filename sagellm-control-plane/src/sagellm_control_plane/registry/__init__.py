"""The plane's memory of its engines, kept in a file so that a plane which was killed takes up where it was.

:mod:`.entries` is what is kept, :mod:`.store` the file, :mod:`.registry` the two together without waiting for a disk,
:mod:`.keeper` its tie to a crew of engines.
"""

from __future__ import annotations

from .entries import EngineEntry
from .registry import Registry

__all__ = ["EngineEntry", "Registry"]
