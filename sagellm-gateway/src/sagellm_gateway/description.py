"""What ``/openapi.json`` says: the routes, the bodies they read by hand, and the one shape of their errors.

Knows nothing of what routes do.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .openai.adapters import LoadAdapterBody, UnloadAdapterBody
from .openai.chat import ChatBody
from .openai.completions import CompletionBody
from .openai.embeddings import EmbeddingBody
from .openai.management import ReloadBody
from .openai.rerank import RerankBody, ScoreBody

_STRING_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What went wrong, and what to do about it."},
                "type": {"type": "string", "description": "Kind of error, in OpenAI's words."},
                "param": {**_STRING_OR_NULL, "description": "The parameter at fault."},
                "code": {"type": "string", "description": "What went wrong, in one word."},
            },
        }
    },
}
_FAILS = {
    "description": "Any error: a request that is refused (4xx), or that failed (5xx).",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
# FastAPI's own answer to what it validates; here nothing is validated by it.
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def description(app: FastAPI) -> dict[str, Any]:
    """OpenAPI of a gateway, made once."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        for kind in (
            ChatBody,
            CompletionBody,
            EmbeddingBody,
            RerankBody,
            ScoreBody,
            LoadAdapterBody,
            UnloadAdapterBody,
            ReloadBody,
        ):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[kind.__name__] = schema
        for name in _NOT_OURS:
            schemas.pop(name, None)
        schemas["Error"] = _ERROR
        for operations in described["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = _FAILS
        app.openapi_schema = described
    return app.openapi_schema
