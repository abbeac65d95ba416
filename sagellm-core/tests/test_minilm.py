"""The real MiniLM beside sentence-transformers, in the ways it is served."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagellm_core import LLM
from sagellm_core.store import CATALOGUE, DEFAULT_EMBEDDING_MODEL, pull
from sagellm_protocol import ErrorCode, SageLLMError

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast, dark-coloured fox leaps across a sleepy hound.",
    "Interest rates were left unchanged on Thursday.",
    "naïve café, 你好, emoji 🎉",
    "a",
    "",
    "several words " * 60,
]
TOO_LONG = "far too many words " * 200


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return pull(DEFAULT_EMBEDDING_MODEL).path
    except SageLLMError as error:
        if error.code is not ErrorCode.UNAVAILABLE:
            raise
        pytest.skip(f"no source of the model can be reached: {error.message}")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module", params=["inline", "process"])
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LLM]:
    with LLM(DEFAULT_EMBEDDING_MODEL, core=request.param) as llm:
        yield llm


def vectors(llm: LLM, inputs: Any, **fields: Any) -> np.ndarray[Any, Any]:
    return np.array([vector.values for vector in llm.embed(inputs, **fields).vectors])


def test_its_vectors_agree_with_sentence_transformers_to_1e_5(llm: LLM, reference: Any) -> None:
    np.testing.assert_allclose(vectors(llm, TEXTS), reference.encode(TEXTS), atol=1e-5, rtol=0)


def test_it_cuts_where_sentence_transformers_does(llm: LLM, reference: Any) -> None:
    with pytest.raises(SageLLMError) as caught:
        llm.embed(TOO_LONG)
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "256" in caught.value.message
    got = llm.embed(TOO_LONG, truncate=True)
    assert got.usage.prompt_tokens == reference.max_seq_length == 256
    np.testing.assert_allclose(got.vectors[0].values, reference.encode(TOO_LONG), atol=1e-5, rtol=0)


def test_leading_dimensions_agree_too(llm: LLM, reference: Any) -> None:
    want = reference.encode(TEXTS, truncate_dim=64, normalize_embeddings=True)
    np.testing.assert_allclose(vectors(llm, TEXTS, dimensions=64), want, atol=1e-5, rtol=0)


def test_what_means_the_same_ranks_first(llm: LLM) -> None:
    best = llm.rerank(TEXTS[0], TEXTS[1:4], top_n=1)
    assert [one.index for one in best] == [0]


def test_all_its_positions_serve_where_they_are_asked_for(folder: Path, reference: Any) -> None:
    with LLM(str(folder), max_model_len=512) as llm:
        got = llm.embed(TOO_LONG, truncate=True)
    assert got.usage.prompt_tokens == 512
    reference.max_seq_length = 512
    try:
        want = reference.encode(TOO_LONG)
    finally:
        reference.max_seq_length = 256
    np.testing.assert_allclose(got.vectors[0].values, want, atol=1e-5, rtol=0)


def test_the_catalogue_says_that_it_is_served() -> None:
    assert "not served" not in CATALOGUE[DEFAULT_EMBEDDING_MODEL].description
