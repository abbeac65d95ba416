"""One module a family of routes; each offers ``router``, and this is their table."""

from __future__ import annotations

from . import adapters, chat, completions, embeddings, health, management, metrics, models, rerank

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    rerank.router,
    models.router,
    management.router,
    adapters.router,
    health.router,
    metrics.router,
)
