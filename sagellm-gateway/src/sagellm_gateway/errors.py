"""Errors as OpenAI's API words them: ``{"error": {"message", "type", "param", "code"}}``.

Knows nothing of what went wrong; that comes as a :class:`~sagellm_protocol.SageLLMError`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from sagellm_protocol import ErrorCode, SageLLMError

RETRY_AFTER_S = 1.0
"""Said with 429 and 503 by those who have no estimate of their own."""

# Words of OpenAI's own that clients branch on, where ours differ.
_CODES = {ErrorCode.UNAUTHENTICATED: "invalid_api_key", ErrorCode.RATE_LIMITED: "rate_limit_exceeded"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    """OpenAI's ``type`` for an HTTP status."""
    return _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


def error_body(error: SageLLMError) -> dict[str, Any]:
    """The JSON body of an error."""
    return _body(error.message, error.http_status, error.param, _CODES.get(error.code, error.code.value))


def error_response(error: SageLLMError) -> Response:
    """The whole answer of an error that came before the first byte of any other."""
    headers = {}
    if error.http_status in {429, 503}:
        wait = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(wait)))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return _response(error_body(error), error.http_status, headers)


def plain_error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error of HTTP itself (no such route, wrong method), which has no code in the contract."""
    return _response(_body(message, status, None, code), status, headers)


def public(error: SageLLMError, names: Mapping[str, str]) -> SageLLMError:
    """Word an error in the API's names instead of the contract's.

    Args:
        error: What a part behind the API raised; its ``param`` is a dotted path of the contract.
        names: API name of each contract field that is named otherwise, ``sampling.`` left off.
    """
    if error.param is None:
        return error
    field = error.param.removeprefix("sampling.")
    head, dot, rest = field.partition(".")
    param = names.get(field) or names.get(head, head) + dot + rest
    # OpenAI writes positions in brackets.
    param = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", param)
    message = error.message
    if param != error.param:
        message = re.sub(rf"(?<![\w.]){re.escape(error.param)}(?!\w)", lambda _: param, message)
    return SageLLMError(error.code, message, param, retryable=error.retryable, retry_after_s=error.retry_after_s)


def _body(message: str, status: int, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}


def _response(body: dict[str, Any], status: int, headers: Mapping[str, str] | None) -> Response:
    return Response(json.dumps(body), status_code=status, headers=headers, media_type="application/json")
