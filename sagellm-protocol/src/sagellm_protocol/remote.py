"""The remote form of ``Engine``: paths, headers, framing and errors of an engine server over HTTP/1.1.

Both ends are implemented elsewhere (a control plane's remote client and engine server); this module is the words they
share.

Every path stands under :data:`PREFIX`. Bodies are JSON of this package's models.

==========================  =====================================================================================
``GET  /info``              :class:`~sagellm_protocol.engine.EngineInfo`
``GET  /stats``             :class:`~sagellm_protocol.engine.EngineStats`
``GET  /health``            200 while the engine serves, else 503; the body is the stats
``POST /render``            a Request in, :class:`~sagellm_protocol.interfaces.RenderedPrompt` out
``POST /generate``          :class:`GenerateCall` in, a stream of events out
``POST /embed``             an EmbedRequest in, an EmbedResponse out
``POST /score``             a ScoreRequest in, a ScoreResponse out
``POST /abort``             :class:`AbortCall` in, :class:`AbortAnswer` out
``POST /drain``             no body; 204 once drained
``POST /sleep``             :class:`SleepCall` in; 204 once it sleeps
``POST /wake``              no body; 204 once it is ready
``POST /reload``            :class:`ReloadCall` in; 204 once it is ready with other weights
``POST /adapters/load``     an AdapterSpec in, EngineInfo out once it is served
``POST /adapters/unload``   :class:`UnloadAdapterCall` in, EngineInfo out
==========================  =====================================================================================

**Framing.** ``/generate`` answers 200 with ``application/x-ndjson``: one event a line, in UTF-8 JSON. A blank line is a
sign of life and is skipped; the server sends one whenever it has been silent for :data:`KEEPALIVE_S`. A client that
hears nothing for :data:`SILENCE_LIMIT_S` takes the engine for dead. The stream is whole only if a terminal event was
read; a connection that closes before is ``ENGINE_FAILED``, never a finish. A client that closes the connection aborts
the request.

**Errors.** Those of a generation come as its terminal event. All others answer the code's HTTP status with an
:class:`ErrorBody`.

**Versions.** Both ends send :data:`VERSION_HEADER`. Ends whose versions differ refuse each other with ``UNSUPPORTED``
naming both; within one version messages only grow by fields that may be left out.

**Time.** Deadlines cross as milliseconds remaining (``SLO.deadline_ms``), counted by each host on its own clock.

**Keys.** A server started with a key wants ``Authorization: Bearer KEY`` on every path but ``/health``.
"""

from __future__ import annotations

from ._wire import PROTOCOL_VERSION, Ask, Report
from .errors import ErrorCode, ErrorInfo, SageLLMError
from .interfaces import RenderedPrompt, SleepMode
from .requests import Name, Request, RequestId

PREFIX = "/engine/v0"
VERSION_HEADER = "sagellm-protocol"
EVENT_STREAM_TYPE = "application/x-ndjson"
KEEPALIVE_S = 5.0
SILENCE_LIMIT_S = 20.0


class GenerateCall(Ask):
    """Body of ``/generate``."""

    request: Request
    prompt: RenderedPrompt | None = None


class AbortCall(Ask):
    """Body of ``/abort``."""

    request_id: RequestId


class AbortAnswer(Report):
    """Answer of ``/abort``."""

    aborted: bool


class SleepCall(Ask):
    """Body of ``/sleep``; fields as in :meth:`~sagellm_protocol.interfaces.SleepControl.sleep`."""

    level: int = 1
    mode: SleepMode = "wait"


class ReloadCall(Ask):
    """Body of ``/reload``; the model as the server's host finds it."""

    model: Name
    revision: str | None = None


class UnloadAdapterCall(Ask):
    """Body of ``/adapters/unload``."""

    name: Name


class ErrorBody(Report):
    """Body of every answer that is not a success."""

    error: ErrorInfo


def check_version(theirs: str | None) -> None:
    """Refuse a peer that speaks another wire version.

    Args:
        theirs: What the peer sent in :data:`VERSION_HEADER`; absent counts as ours, so that tools need not send it.

    Raises:
        SageLLMError: ``UNSUPPORTED``, naming both versions.
    """
    if theirs is not None and theirs != PROTOCOL_VERSION:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"the peer speaks wire version {theirs}, this side {PROTOCOL_VERSION};"
            " install versions of isagellm that belong together on both",
        )
