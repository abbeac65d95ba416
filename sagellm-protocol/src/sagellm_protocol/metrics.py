"""What is measured of one request, and when its stations were reached.

What cannot be measured is ``None``, never 0. Knows nothing of how figures are gathered or shown.
"""

from __future__ import annotations

from pydantic import Field

from ._wire import Report


class Timestamps(Report):
    """Monotonic seconds of one process; differences are meaningful, values are never compared across processes."""

    queued: float | None = None
    """Accepted."""
    scheduled: float | None = None
    """First given a part of a step."""
    first_token: float | None = None
    finished: float | None = None


class Metrics(Report):
    """Figures of one finished request, as its engine measured them."""

    queue_ms: float | None = Field(default=None, ge=0)
    """Accepted to first scheduled."""
    ttft_ms: float | None = Field(default=None, ge=0)
    """Accepted to first token (time to first token)."""
    tbt_ms: float | None = Field(default=None, ge=0)
    """Longest wait between two tokens of a choice (time between tokens)."""
    tpot_ms: float | None = Field(default=None, ge=0)
    """Mean time per output token after the first."""
    e2e_ms: float | None = Field(default=None, ge=0)
    """Accepted to finished."""
    throughput_tps: float | None = Field(default=None, ge=0)
    """Output tokens a second, accepted to finished."""
    peak_mem_mb: float | None = Field(default=None, ge=0)
    """Highest resident memory of the engine core so far, MiB."""
    kv_used_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of this request held in the KV cache at once."""
    kv_used_bytes: int | None = Field(default=None, ge=0)
    prefix_hit_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of the prompt's tokens found in the prefix cache."""
    evict_count: int | None = Field(default=None, ge=0)
    """Times this request lost its blocks to others (preemptions)."""
    evict_ms: float | None = Field(default=None, ge=0)
    """Time between losing its blocks and being scheduled again, summed."""
    spec_accept_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of draft tokens that were accepted."""
    error_rate: float | None = Field(default=None, ge=0, le=1)
    """Share of the request's attempts that failed."""
