"""The ``sagellm`` command: argument parsing, progress and messages for people. All work is done by the components."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
