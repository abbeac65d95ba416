"""The body by which an operator has engines take other weights.

Knows nothing of how they do.
"""

from __future__ import annotations

from pydantic import Field

from .body import Body


class ReloadBody(Body):
    """``/reload_weights``."""

    model: str = Field(min_length=1, max_length=512)
    """The weights to take: a path on the engine's host, or a name."""
    revision: str | None = None
    """Of a name on the model hub."""
    engine: str | None = None
    """Id of the engine; absent, all of them."""
