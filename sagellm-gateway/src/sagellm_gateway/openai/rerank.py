"""The bodies of ``/v1/rerank`` and ``/v1/score``, read into the contract, and their answers.

The first has the shape of Jina's and Cohere's APIs, the second that of vLLM's. Knows nothing of where scores come from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import JsonValue, ValidationError

from sagellm_gateway.errors import public
from sagellm_protocol import SageLLMError, ScoreRequest, ScoreResponse

from .body import MODEL_ALIAS, Body, Refused, invalid
from .chat import ModelName

_REFUSED = {
    "truncate_prompt_tokens": Refused((), "set truncate, which cuts to what the model reads"),
    "request_id": Refused((), "send it in the header x-request-id"),
}


class RerankBody(Body):
    """Every parameter of Jina's API, Cohere's and vLLM's that is honoured; the others stand in ``refused``."""

    model: ModelName = MODEL_ALIAS
    query: str
    documents: JsonValue
    top_n: int | None = None
    return_documents: bool = True
    truncate: bool = False
    user: str | None = None
    priority: int = 0

    refused: ClassVar[Mapping[str, Refused]] = {
        **_REFUSED,
        "max_chunks_per_doc": Refused((1,), "a document is read in one piece; set truncate to cut it"),
        "max_tokens_per_doc": Refused((), "a document is cut to what the model reads, where truncate is set"),
        "rank_fields": Refused((["text"],), "of a document that is an object its text is read"),
    }

    def request(self, model: str, request_id: str, trace_id: str, most: int) -> ScoreRequest:
        """As the contract has it; arguments as those of an embedding.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` in the API's names.
        """
        if self.top_n is not None and self.top_n < 1:
            raise invalid("top_n", f"must be at least 1 (got {self.top_n})")
        texts = _texts(self.documents, "documents", most)
        return _score_request(self, model, request_id, trace_id, self.query, texts, RERANK_NAMES)


class ScoreBody(Body):
    """Every parameter of vLLM's API that is honoured; the others stand in ``refused``."""

    model: ModelName = MODEL_ALIAS
    text_1: str
    text_2: JsonValue
    truncate: bool = False
    user: str | None = None
    priority: int = 0

    refused: ClassVar[Mapping[str, Refused]] = _REFUSED

    def request(self, model: str, request_id: str, trace_id: str, most: int) -> ScoreRequest:
        """As the contract has it; arguments as those of an embedding.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` in the API's names.
        """
        texts = _texts(self.text_2, "text_2", most)
        return _score_request(self, model, request_id, trace_id, self.text_1, texts, SCORE_NAMES)


RERANK_NAMES: Mapping[str, str] = {}
"""API names of the contract's fields, where they differ."""
SCORE_NAMES: Mapping[str, str] = {"query": "text_1", "documents": "text_2"}


def rerank_answer(response: ScoreResponse, body: RerankBody, asked: ScoreRequest) -> dict[str, Any]:
    """Jina's JSON of scores: the best first, as many as were asked for."""
    best = sorted(range(len(response.scores)), key=lambda index: -response.scores[index])
    results: list[dict[str, Any]] = []
    for index in best[: body.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": response.scores[index]}
        if body.return_documents:
            result["document"] = {"text": asked.documents[index]}
        results.append(result)
    return {"id": asked.request_id, "model": response.model, "results": results, "usage": _usage(response)}


def score_answer(response: ScoreResponse, body: ScoreBody, asked: ScoreRequest) -> dict[str, Any]:
    """Scores as vLLM's API has them, in the order of the texts."""
    return {
        "id": asked.request_id,
        "object": "list",
        "created": int(time.time()),
        "model": response.model,
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(response.scores)],
        "usage": _usage(response),
    }


def _usage(response: ScoreResponse) -> dict[str, int]:
    return {"prompt_tokens": response.usage.prompt_tokens, "total_tokens": response.usage.total_tokens}


def _score_request(
    body: RerankBody | ScoreBody,
    model: str,
    request_id: str,
    trace_id: str,
    query: str,
    documents: tuple[str, ...],
    names: Mapping[str, str],
) -> ScoreRequest:
    try:
        return ScoreRequest(
            request_id=request_id,
            trace_id=trace_id,
            model=model,
            query=query,
            documents=documents,
            truncate=body.truncate,
            user=body.user,
            priority=body.priority,
        )
    except ValidationError as error:
        raise public(SageLLMError.from_validation(error), names) from None


def _texts(value: JsonValue, param: str, most: int) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed:
        raise invalid(param, "must be a string, or a list of strings that is not empty")
    if len(listed) > most:
        raise invalid(param, f"has {len(listed)} entries; at most {most} are taken at once")
    return tuple(_text(item, f"{param}[{index}]") for index, item in enumerate(listed))


def _text(item: JsonValue, where: str) -> str:
    if isinstance(item, dict) and set(item) == {"text"}:
        item = item["text"]
    if not isinstance(item, str):
        raise invalid(where, "must be a string, or an object whose only field is text")
    return item
