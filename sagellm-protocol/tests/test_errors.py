from __future__ import annotations

import copy
import pickle

import pytest
from pydantic import ValidationError

from sagellm_protocol import ErrorCode, ErrorInfo, Request, RequestEnding, SageLLMError

# What a caller may rely on; a change here breaks callers.
STATUSES = {
    "invalid_request": 400,
    "unsupported": 400,
    "context_length_exceeded": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "model_not_found": 404,
    "conflict": 409,
    "payload_too_large": 413,
    "rate_limited": 429,
    "queue_full": 429,
    "cancelled": 499,
    "internal": 500,
    "not_installed": 501,
    "engine_failed": 502,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def test_every_code_has_its_one_status() -> None:
    assert {code.value: code.http_status for code in ErrorCode} == STATUSES


def test_what_may_succeed_elsewhere_or_later_is_retryable() -> None:
    assert {code.value for code in ErrorCode if code.retryable} == {
        "rate_limited",
        "queue_full",
        "engine_failed",
        "unavailable",
    }


@pytest.mark.parametrize("carry", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickling_and_copying_whole(carry) -> None:
    error = SageLLMError(ErrorCode.QUEUE_FULL, "full", "model", retryable=False, retry_after_s=2.5)
    again = carry(error)
    assert type(again) is SageLLMError
    assert again.info() == error.info()
    assert str(again) == "full"


def test_an_error_crosses_the_wire_whole() -> None:
    error = SageLLMError(ErrorCode.RATE_LIMITED, "slow down", "user", retryable=False, retry_after_s=0.5)
    info = ErrorInfo.model_validate_json(error.info().to_wire())
    assert SageLLMError.from_info(info).info() == error.info()


def test_a_code_decides_what_an_error_does_not_say() -> None:
    error = SageLLMError(ErrorCode.UNAVAILABLE, "later")
    assert (error.http_status, error.retryable, error.retry_after_s) == (503, True, None)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"sampling": {"top_p": 2}},
            "sampling.top_p",
            "sampling.top_p: Input should be less than or equal to 1 (got 2)",
        ),
        ({"model": None}, "model", "model: Input should be a valid string (got None)"),
        ({"surprise": 1}, "surprise", "surprise: unknown field"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "prompt": None},
            "messages.0.content.0.type",
            "image",
        ),
        ({"prompt": None}, None, "request: give exactly one of prompt, prompt_token_ids, messages (got none)"),
        ({"sampling": {"max_tokens": 1, "min_tokens": 2}}, "sampling", "min_tokens (2) is larger than max_tokens (1)"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(fields, param, message) -> None:
    with pytest.raises(ValidationError) as refusal:
        Request.model_validate({"request_id": "r", "model": "m", "prompt": "x", **fields})
    error = SageLLMError.from_validation(refusal.value)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.param == param
    assert message in error.message


def test_a_prefix_says_where_in_a_larger_message_the_fault_is() -> None:
    with pytest.raises(ValidationError) as refusal:
        Request.model_validate({"model": "m", "prompt": "x"})
    assert SageLLMError.from_validation(refusal.value, "body").message == "body.request_id: required"


def test_a_long_value_is_cut_in_its_message() -> None:
    with pytest.raises(ValidationError) as refusal:
        Request.model_validate({"request_id": "r", "model": "m", "prompt": ["x" * 10000]})
    assert len(SageLLMError.from_validation(refusal.value).message) < 200


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (ErrorCode.CANCELLED, RequestEnding.CANCELLED),
        (ErrorCode.DEADLINE_EXCEEDED, RequestEnding.EXPIRED),
        (ErrorCode.ENGINE_FAILED, RequestEnding.FAILED),
        (ErrorCode.INTERNAL, RequestEnding.FAILED),
        (ErrorCode.UNSUPPORTED, RequestEnding.REFUSED),
        (ErrorCode.QUEUE_FULL, RequestEnding.REFUSED),
    ],
)
def test_every_error_is_one_ending(code: ErrorCode, ending: RequestEnding) -> None:
    assert RequestEnding.of(code) is ending
