"""Requests and instances in the words of the replaced control plane."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from sagellm_control_plane.types import ExecutionInstance, ExecutionInstanceType, RequestMetadata, RequestType, now

_IDS = itertools.count()


def wanted(request_id: str | None = None, ago_s: float = 1.0, **fields: Any) -> RequestMetadata:
    """A request that came that long ago."""
    arrival = now() - timedelta(seconds=ago_s)
    common = {"prompt": "hello", "arrival_time": arrival, "request_id": request_id or f"r{next(_IDS)}"}
    return RequestMetadata(**{**common, **fields})


def texts(request_id: str | None = None, count: int = 1, **fields: Any) -> RequestMetadata:
    """A request for vectors."""
    common = {"prompt": None, "request_type": RequestType.EMBEDDING, "embedding_texts": ["text"] * count}
    return wanted(request_id, **{**common, **fields})


def place(instance_id: str, model_name: str = "m", **fields: Any) -> ExecutionInstance:
    """An instance."""
    return ExecutionInstance(instance_id, "localhost", 8000, model_name, **fields)


def embedder(instance_id: str, **fields: Any) -> ExecutionInstance:
    """An instance that makes vectors."""
    return place(instance_id, instance_type=ExecutionInstanceType.EMBEDDING, **fields)
