"""The one error of the harness."""

from __future__ import annotations


class PeerError(Exception):
    """A peer, or one of its figures, cannot be had; the message is the reason the table gives."""
