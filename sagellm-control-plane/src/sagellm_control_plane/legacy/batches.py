"""Embeddings that are placed together, in SAGE's words."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from sagellm_control_plane.policies.hybrid import BATCH
from sagellm_control_plane.types import RequestMetadata, now


class EmbeddingPriority(Enum):
    """How embeddings stand beside the rest."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    ADAPTIVE = "adaptive"


@dataclass
class EmbeddingBatch:
    """Embedding requests of one model."""

    requests: list[RequestMetadata] = field(default_factory=list)
    model: str | None = None
    total_texts: int = 0
    created_at: datetime = field(default_factory=now)
    batch_id: str = ""
    max_size: int = field(default=BATCH, init=False)
    """Requests at most."""

    def __post_init__(self) -> None:
        self.batch_id = self.batch_id or f"batch-{uuid.uuid4().hex[:12]}"

    def add_request(self, request: RequestMetadata) -> bool:
        """Let a request join. False for one that asks for no vectors, or of another model, or when it is full."""
        if not request.is_embedding_request or self.size >= self.max_size:
            return False
        if self.requests and request.effective_model_name != self.model:
            return False
        self.model = request.effective_model_name
        self.requests.append(request)
        self.total_texts += len(request.embedding_texts or ())
        return True

    @property
    def size(self) -> int:
        """Requests in it."""
        return len(self.requests)
