"""JSON Schemas of every message on the wire, one file each beside this module, and the table of those messages.

The files are written by ``python -m sagellm_protocol.schemas`` and read with :func:`read`. A difference between them
and the models is a change of the wire, which ``WIRE.md`` has rules for. Knows nothing of transports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sagellm_protocol._wire import PROTOCOL_VERSION
from sagellm_protocol.blocks import KVEventBatch, KVTransferTicket
from sagellm_protocol.devices import BackendCapabilities, DeviceInfo
from sagellm_protocol.engine import AdapterSpec, EngineInfo, EngineSpec, EngineStats
from sagellm_protocol.errors import ErrorInfo
from sagellm_protocol.events import StreamEvent
from sagellm_protocol.interfaces import EngineRecord, ModelInfo, PlaneStatus, RenderedPrompt
from sagellm_protocol.metrics import Metrics
from sagellm_protocol.remote import (
    AbortAnswer,
    AbortCall,
    ErrorBody,
    GenerateCall,
    ReloadCall,
    SleepCall,
    UnloadAdapterCall,
)
from sagellm_protocol.requests import EmbedRequest, Request, ScoreRequest
from sagellm_protocol.responses import EmbedResponse, Response, ScoreResponse
from sagellm_protocol.sampling import SamplingParams

MESSAGES: dict[str, Any] = {
    "AbortAnswer": AbortAnswer,
    "AbortCall": AbortCall,
    "ReloadCall": ReloadCall,
    "SleepCall": SleepCall,
    "AdapterSpec": AdapterSpec,
    "BackendCapabilities": BackendCapabilities,
    "DeviceInfo": DeviceInfo,
    "EmbedRequest": EmbedRequest,
    "EmbedResponse": EmbedResponse,
    "EngineInfo": EngineInfo,
    "EngineRecord": EngineRecord,
    "EngineSpec": EngineSpec,
    "EngineStats": EngineStats,
    "ErrorBody": ErrorBody,
    "ErrorInfo": ErrorInfo,
    "GenerateCall": GenerateCall,
    "KVEventBatch": KVEventBatch,
    "KVTransferTicket": KVTransferTicket,
    "Metrics": Metrics,
    "ModelInfo": ModelInfo,
    "PlaneStatus": PlaneStatus,
    "RenderedPrompt": RenderedPrompt,
    "Request": Request,
    "Response": Response,
    "SamplingParams": SamplingParams,
    "ScoreRequest": ScoreRequest,
    "ScoreResponse": ScoreResponse,
    "StreamEvent": StreamEvent,
    "UnloadAdapterCall": UnloadAdapterCall,
}
"""Every message, by the name of its schema."""


def generate(name: str) -> dict[str, Any]:
    """The schema of a message, made from its model: what a reader of this version accepts."""
    schema = TypeAdapter(MESSAGES[name]).json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:sagellm:protocol:{PROTOCOL_VERSION}:{name}",
        **schema,
    }


def path(name: str) -> Path:
    """Where a message's schema lies."""
    return Path(__file__).parent / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """The schema of a message, as shipped."""
    schema: dict[str, Any] = json.loads(path(name).read_text())
    return schema


def write() -> None:
    """Write every schema anew, and remove those of messages that are no more."""
    for file in Path(__file__).parent.glob("*.json"):
        if file.stem not in MESSAGES:
            file.unlink()
    for name in MESSAGES:
        path(name).write_text(json.dumps(generate(name), indent=2, sort_keys=True) + "\n")
