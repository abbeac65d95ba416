"""What every object of one answer says of itself: id, time, model, fingerprint.

Knows nothing of choices.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

FINGERPRINT = f"sagellm-{version('isagellm-gateway')}"


def mint(prefix: str) -> str:
    """A new id, as ``chatcmpl-…``."""
    return f"{prefix}-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Head:
    """The fields that the answer and all its chunks share."""

    id: str
    model: str
    """The name served, also when the request used a stand-in."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""

    def fields(self, kind: str) -> dict[str, Any]:
        """As JSON fields.

        Args:
            kind: OpenAI's ``object``.
        """
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }
