"""Grammars that output must follow: compiled off the step loop, kept, and followed token by token.

Knows tokens' bytes and nothing of requests, scheduling or models. Only the compiler imports ``llguidance``.
"""

from __future__ import annotations
