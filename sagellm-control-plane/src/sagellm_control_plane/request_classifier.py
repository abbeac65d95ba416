"""What kind a request is, whether it can be served at all, and by which instances: pure, over plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .legacy.asking import tokens_of
from .legacy.columns import serves
from .types import ExecutionInstance, ExecutionInstanceType, RequestMetadata, RequestType

MOST_TEMPERATURE = 2.0
_SPECIAL = {
    RequestType.EMBEDDING: (ExecutionInstanceType.EMBEDDING,),
    RequestType.LLM_CHAT: (ExecutionInstanceType.GENERAL, ExecutionInstanceType.HYBRID),
    RequestType.LLM_GENERATE: (ExecutionInstanceType.GENERAL, ExecutionInstanceType.HYBRID),
}


class ValidationErrorCode(Enum):
    """What is wrong with a request."""

    MISSING_REQUEST_ID = "missing_request_id"
    MISSING_PROMPT = "missing_prompt"
    MISSING_EMBEDDING_TEXTS = "missing_embedding_texts"
    EMPTY_EMBEDDING_TEXTS = "empty_embedding_texts"
    INVALID_EMBEDDING_BATCH_SIZE = "invalid_embedding_batch_size"
    INVALID_MAX_TOKENS = "invalid_max_tokens"
    INVALID_TEMPERATURE = "invalid_temperature"
    INVALID_TOP_P = "invalid_top_p"
    CONFLICTING_REQUEST_TYPE = "conflicting_request_type"


@dataclass
class ValidationResult:
    """Whether a request can be served, and why not; true in a condition when it can."""

    is_valid: bool
    error_code: ValidationErrorCode | None = None
    error_message: str = ""
    warnings: list[str] | None = None

    def __bool__(self) -> bool:
        return self.is_valid


Fault = tuple[ValidationErrorCode, str]


class RequestClassifier:
    """Tells kinds of requests apart.

    Args:
        strict_validation: Refuse what is ambiguous (a prompt and texts at once) instead of warning of it.
    """

    def __init__(self, strict_validation: bool = False) -> None:
        self.strict_validation = strict_validation

    def classify(self, request: RequestMetadata) -> RequestType:
        """The kind of a request: what it says, unless only the other kind's input is there."""
        if request.embedding_texts and not request.prompt:
            return RequestType.EMBEDDING
        if request.is_embedding_request and request.prompt and request.embedding_texts is None:
            return RequestType.LLM_GENERATE
        return request.request_type

    def get_compatible_instances(
        self,
        request_type: RequestType,
        instances: list[ExecutionInstance],
        *,
        include_unavailable: bool = False,
        prefer_specialized: bool = True,
    ) -> list[ExecutionInstance]:
        """Instances that serve a kind of request.

        Args:
            request_type: The kind.
            instances: All there are.
            include_unavailable: Those too that take none now.
            prefer_specialized: Those first that serve this kind alone; the order is otherwise kept.
        """
        found = [
            instance
            for instance in instances
            if serves(instance, request_type, "") and (include_unavailable or instance.can_accept_request)
        ]
        if prefer_specialized:
            found.sort(key=lambda instance: instance.instance_type not in _SPECIAL[request_type])
        return found

    def validate_request(self, request: RequestMetadata) -> ValidationResult:
        """The first thing that is wrong with a request, if anything is; what is merely odd stands in the warnings."""
        for check in (_identity, self._conflict, _input, _sampling):
            for code, message in check(request):
                return ValidationResult(False, code, message)
        warnings = list(_oddities(request))
        if not self.strict_validation:
            warnings.extend(message for _, message in _conflicts(request))
        return ValidationResult(True, warnings=warnings or None)

    def get_request_summary(self, request: RequestMetadata) -> dict[str, Any]:
        """A request in few words, without its text."""
        result = self.validate_request(request)
        kind = self.classify(request)
        return {
            "request_id": request.request_id,
            "request_type": kind.value,
            "model": request.effective_model_name,
            "priority": request.priority.name,
            "prompt_length": len(request.prompt) if isinstance(request.prompt, str) else None,
            "embedding_count": len(request.embedding_texts or ()) if kind is RequestType.EMBEDDING else None,
            "estimated_prompt_tokens": tokens_of(request) if result else None,
            "max_tokens": request.max_tokens,
            "slo_deadline_ms": request.slo_deadline_ms,
            "is_valid": result.is_valid,
            "error_code": result.error_code.value if result.error_code is not None else None,
            "error_message": result.error_message,
            "warnings": list(result.warnings or ()),
        }

    def _conflict(self, request: RequestMetadata) -> Iterator[Fault]:
        if self.strict_validation:
            yield from _conflicts(request)


def create_classifier(strict_validation: bool = False) -> RequestClassifier:
    """A classifier."""
    return RequestClassifier(strict_validation=strict_validation)


def _identity(request: RequestMetadata) -> Iterator[Fault]:
    given: Any = request.request_id
    if not isinstance(given, str) or not given.strip():
        yield ValidationErrorCode.MISSING_REQUEST_ID, f"request_id must be a text that is not empty (got {given!r})"


def _conflicts(request: RequestMetadata) -> Iterator[Fault]:
    code = ValidationErrorCode.CONFLICTING_REQUEST_TYPE
    if request.is_embedding_request and request.prompt:
        yield code, "request_type is EMBEDDING and prompt is given; put the text into embedding_texts"
    elif not request.is_embedding_request and request.embedding_texts:
        yield code, f"request_type is {request.request_type.name} and embedding_texts is given; ask for EMBEDDING"


def _input(request: RequestMetadata) -> Iterator[Fault]:
    prompt: Any = request.prompt
    if request.is_embedding_request:
        yield from _texts(request)
    elif not isinstance(prompt, str) or not prompt.strip():
        got = repr(prompt) if prompt is None or isinstance(prompt, str) else f"a {type(prompt).__name__}"
        yield ValidationErrorCode.MISSING_PROMPT, f"prompt must be a text that is not empty (got {got})"


def _texts(request: RequestMetadata) -> Iterator[Fault]:
    texts: Any = request.embedding_texts
    if texts is None or isinstance(texts, str) or not isinstance(texts, Sequence):
        code = ValidationErrorCode.MISSING_EMBEDDING_TEXTS
        yield code, f"embedding_texts must be a list of texts (got {type(texts).__name__})"
        return
    if not texts:
        yield ValidationErrorCode.EMPTY_EMBEDDING_TEXTS, "embedding_texts has no text in it"
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            what = "is empty" if isinstance(text, str) else f"is a {type(text).__name__}"
            yield ValidationErrorCode.EMPTY_EMBEDDING_TEXTS, f"embedding_texts[{index}] {what}; texts are wanted"
    size: Any = request.embedding_batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        code = ValidationErrorCode.INVALID_EMBEDDING_BATCH_SIZE
        yield code, f"embedding_batch_size must be 1 or more (got {size!r})"


def _sampling(request: RequestMetadata) -> Iterator[Fault]:
    if request.is_embedding_request:
        return
    most: Any = request.max_tokens
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        yield ValidationErrorCode.INVALID_MAX_TOKENS, f"max_tokens must be 1 or more (got {most!r})"
    checks: tuple[tuple[str, ValidationErrorCode, Callable[[float], bool], str], ...] = (
        (
            "temperature",
            ValidationErrorCode.INVALID_TEMPERATURE,
            lambda value: 0 <= value <= MOST_TEMPERATURE,
            f"between 0 and {MOST_TEMPERATURE:g}",
        ),
        ("top_p", ValidationErrorCode.INVALID_TOP_P, lambda value: 0 < value <= 1, "over 0 and at most 1"),
    )
    for name, code, fits, bounds in checks:
        value = getattr(request, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not fits(value):
            yield code, f"{name} must be {bounds} (got {value!r})"


def _oddities(request: RequestMetadata) -> Iterator[str]:
    if request.effective_model_name is None:
        yield "no model is named: any that serves this kind may answer"
    if request.slo_deadline_ms is not None and request.slo_deadline_ms <= 0:
        yield f"slo_deadline_ms is over already (got {request.slo_deadline_ms!r})"
    if request.is_embedding_request and len(request.embedding_texts or ()) > request.embedding_batch_size:
        count, size = len(request.embedding_texts or ()), request.embedding_batch_size
        yield f"{count} texts are embedded in {math.ceil(count / size)} batches of {size} at most"
