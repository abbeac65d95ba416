"""What routes work with: one gateway's parts, found through the app that serves them.

Knows nothing of how the parts are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from sagellm_protocol import ControlPlane, ErrorCode, SageLLMError
from sagellm_protocol.features import EMBED, GENERATE, SCORE

from .lifecycle import Lifecycle
from .metrics import Meters
from .openai.body import MODEL_ALIAS
from .relay import Relay
from .settings import GatewaySettings

_KINDS = {GENERATE: "generates text", EMBED: "makes embeddings", SCORE: "scores texts"}


@dataclass(frozen=True)
class Gateway:
    """One gateway's parts."""

    plane: ControlPlane
    settings: GatewaySettings
    lifecycle: Lifecycle
    meters: Meters
    relay: Relay

    async def served(self, name: str, feature: str) -> str:
        """The model that a request's ``model`` stands for; only the alias stands for another.

        Args:
            name: As the request has it.
            feature: What the model must offer when it is chosen here.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when the alias can stand for none.
        """
        if name != MODEL_ALIAS:
            return name
        models = await self.plane.models()
        if any(model.name == name for model in models):
            return name
        fit = [model for model in models if feature in model.features]
        if not fit:
            served = ", ".join(model.name for model in models) or "none"
            raise SageLLMError(
                ErrorCode.UNAVAILABLE, f"no model here {_KINDS[feature]} now (models: {served})", "model"
            )
        return max(fit, key=lambda model: (model.ready > 0, model.parent is None)).name


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves a request."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


def trace_of(request: Request) -> str:
    """The id that names a request in every log."""
    return str(request.state.request_id)
