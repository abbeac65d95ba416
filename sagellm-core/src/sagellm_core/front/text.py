"""Text that can leave Python: what a JSON escape may smuggle in and no encoding carries is refused by name.

Knows nothing of tokens.
"""

from __future__ import annotations

from sagellm_protocol.errors import ErrorCode, SageLLMError


def check_text(text: str, param: str) -> None:
    """Refuse text that holds half a surrogate pair, as an escape like ``\\ud800`` alone makes it.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, with the code point and where it stands.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"the text holds U+{ord(text[error.start]):04X} at position {error.start}: half a surrogate pair, which is"
            " no character; send both halves, or leave it out",
            param,
        ) from error
