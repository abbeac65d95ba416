"""What both clients are: where they ask, what they ask, and in what order. Does no I/O.

A conversation with the server is a generator that yields calls and is sent their answers; each client carries them out
in its own way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from typing_extensions import Self

from sagellm_protocol import ErrorCode, SageLLMError

from . import _wire

Json = Mapping[str, Any]
Session = TypeVar("Session")


@dataclass(frozen=True)
class Call:
    """One request to the server.

    Attributes:
        method: HTTP method.
        path: Under the client's address.
        payload: JSON to send.
    """

    method: str
    path: str
    payload: Json | None = None


Flow = Generator[Call, Json, Json]


class InferenceClient(Generic[Session]):
    """Chat, completion and embedding against one gateway; answers are the server's JSON.

    Args:
        base_url: Address of the API, ending in ``/v1``.
        default_llm_model: Model of chat and generate calls where none is named; absent, the first one served.
        default_embedding_model: Likewise for embed.
        timeout: Seconds to wait for the server to say anything.
        session: An httpx client to use in place of one of its own; it is left open.
        api_key: Key of the server; absent, ``SAGELLM_API_KEY``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an address or a session that is none.
    """

    _session_type: ClassVar[type[Any]]

    def __init__(
        self,
        base_url: str,
        default_llm_model: str | None = None,
        default_embedding_model: str | None = None,
        timeout: float = 60,
        session: Session | None = None,
        *,
        api_key: str | None = None,
    ) -> None:
        if session is not None and not isinstance(session, self._session_type):
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"session is a {type(session).__module__}.{type(session).__qualname__};"
                f" give an httpx.{self._session_type.__name__}",
                "session",
            )
        self.base_url = _wire.base_url(base_url)
        self.default_llm_model = default_llm_model
        self.default_embedding_model = default_embedding_model
        self.timeout = timeout
        self._headers = _wire.headers(api_key)
        self._session: Session = session if session is not None else self._session_type()
        self._owns_session = session is None

    @classmethod
    def create(
        cls,
        control_plane_url: str | None = None,
        default_llm_model: str | None = None,
        default_embedding_model: str | None = None,
        timeout: float = 60,
        session: Session | None = None,
        *,
        api_key: str | None = None,
    ) -> Self:
        """A client of a running gateway: at ``control_plane_url``, else ``SAGELLM_BASE_URL``, else local port 8889."""
        url = _wire.base_url(control_plane_url)
        return cls(url, default_llm_model, default_embedding_model, timeout, session, api_key=api_key)

    create_with_control_plane = create

    def _chat(self, messages: Iterable[Json], model: str | None, options: Json) -> Flow:
        _wire.refuse_stream(options, "chat_stream")
        return (yield (yield from self._chat_call(messages, model, options)))

    def _generate(self, prompt: str, model: str | None, options: Json) -> Flow:
        _wire.refuse_stream(options, "generate_stream")
        return (yield (yield from self._generate_call(prompt, model, options)))

    def _embed(self, texts: Iterable[str], model: str | None, options: Json) -> Flow:
        inputs = _wire.texts(texts)
        name = yield from self._model(model or self.default_embedding_model)
        return (yield Call("POST", "/embeddings", {"model": name, "input": inputs, **options}))

    def _models(self) -> Flow:
        return (yield Call("GET", "/models"))

    def _chat_call(self, messages: Iterable[Json], model: str | None, options: Json) -> Generator[Call, Json, Call]:
        turns = [dict(message) for message in messages]
        name = yield from self._model(model or self.default_llm_model)
        return Call("POST", "/chat/completions", {"model": name, "messages": turns, **options})

    def _generate_call(self, prompt: str, model: str | None, options: Json) -> Generator[Call, Json, Call]:
        name = yield from self._model(model or self.default_llm_model)
        return Call("POST", "/completions", {"model": name, "prompt": prompt, **options})

    def _model(self, named: str | None) -> Generator[Call, Json, str]:
        return named or _wire.first_model((yield Call("GET", "/models")))
