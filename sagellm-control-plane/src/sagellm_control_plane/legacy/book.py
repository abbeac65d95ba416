"""What the manager remembers of each engine beside what the plane knows, and how it shows engines to its callers."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagellm_control_plane.fleet import Member
from sagellm_control_plane.types import EngineInfo, ExecutionInstance, ExecutionInstanceType, now
from sagellm_protocol import EngineState

from .errors import BadValue, not_yet

MAX_STOPPED = 50
"""Stopped engines kept for inspection."""
KINDS = {"llm": ExecutionInstanceType.GENERAL, "embedding": ExecutionInstanceType.EMBEDDING}
_LATER_TYPES = (ExecutionInstanceType.PREFILLING, ExecutionInstanceType.DECODING, ExecutionInstanceType.HYBRID)


@dataclass
class Entry:
    """One engine. What the instance says of load and health is filled in when it is shown."""

    instance: ExecutionInstance
    engine_kind: str
    metadata: dict[str, Any]
    label: str | None = None
    member: Member | None = None
    """Absent once it is stopped."""
    created_at: datetime = field(default_factory=now)
    born: float = field(default_factory=time.monotonic)
    reported_active: int = 0
    """Requests that someone else says are active there."""
    last_failures: int = 0
    heard_at: datetime | None = None
    """When a caller last reported a heartbeat."""

    @property
    def state(self) -> EngineState:
        """The plane's judgement; stopped once the plane no longer has it."""
        return EngineState.STOPPED if self.member is None else self.member.state

    @property
    def active(self) -> int:
        """Requests of this plane there, or as many as were reported if those are more."""
        own = len(self.member.tickets) if self.member is not None else 0
        return max(own, self.reported_active)

    def info(self) -> EngineInfo:
        """As an engine."""
        member, instance = self.member, self.instance
        heard = datetime.fromtimestamp(member.last_heard) if member and member.last_heard else None  # noqa: DTZ006
        times = [moment for moment in (heard, self.heard_at) if moment is not None]
        return EngineInfo(
            engine_id=instance.instance_id,
            model_id=instance.model_name,
            host=instance.host,
            port=instance.port,
            state=self.state,
            engine_kind=self.engine_kind,
            created_at=self.created_at,
            last_heartbeat=max(times, default=None),
            consecutive_failures=member.failures if member is not None else self.last_failures,
            active_requests=self.active,
            metadata=dict(self.metadata),
        )

    def shown(self) -> ExecutionInstance:
        """As an instance, with load and health of now."""
        member, instance = self.member, self.instance
        instance.is_available = member is not None and member.ready
        instance.is_healthy = self.state in (EngineState.READY, EngineState.DRAINING)
        instance.active_requests = self.active
        if member is not None:
            instance.current_load = min(1.0, member.load.sequences / member.capacity)
            latency = member.load.latency_s
            instance.avg_latency_ms = None if latency is None else latency * 1000
            instance.throughput_tokens_per_sec = member.load.throughput_tps
        return instance


class Book:
    """Entries by id: those the plane has, and the last of those that stopped."""

    def __init__(self) -> None:
        self._here: dict[str, Entry] = {}
        self._stopped: OrderedDict[str, Entry] = OrderedDict()

    def add(self, entry: Entry) -> None:
        """Write an engine down.

        Raises:
            ValueError: Its id is registered.
        """
        engine_id = entry.instance.instance_id
        if engine_id in self._here:
            raise BadValue(f"engine {engine_id!r} is registered already; unregister it first", "engine_id")
        self._stopped.pop(engine_id, None)
        self._here[engine_id] = entry

    def here(self) -> dict[str, Entry]:
        """Those the plane has."""
        return dict(self._here)

    def get(self, engine_id: str) -> Entry | None:
        """An engine of that id, stopped ones included."""
        return self._here.get(engine_id) or self._stopped.get(engine_id)

    def all(self) -> list[Entry]:
        """All, stopped ones last."""
        return [*self._here.values(), *self._stopped.values()]

    def retire(self, engine_id: str) -> Entry | None:
        """Keep an engine among the stopped ones; ``None`` if it is not here."""
        entry = self._here.pop(engine_id, None)
        if entry is not None:
            entry.last_failures = entry.member.failures if entry.member is not None else 0
            entry.member = None
            self._stopped[engine_id] = entry
            while len(self._stopped) > MAX_STOPPED:
                self._stopped.popitem(last=False)
        return entry

    def forget(self, engine_id: str) -> None:
        """Remember nothing of it."""
        self._here.pop(engine_id, None)
        self._stopped.pop(engine_id, None)

    def prune(self) -> int:
        """Forget the stopped ones; how many they were."""
        count = len(self._stopped)
        self._stopped.clear()
        return count


def type_of(engine_kind: str, instance_type: ExecutionInstanceType | None = None) -> ExecutionInstanceType:
    """The instance type of an engine.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for fine-tuning and for prefill and decode apart, which are still to come;
            ``INVALID_REQUEST`` for an unknown kind.
    """
    if engine_kind == "finetune":
        raise not_yet("engine_kind", engine_kind, "use 'llm' or 'embedding'")
    if engine_kind not in KINDS:
        raise BadValue(f"engine_kind must be one of {', '.join(KINDS)} (got {engine_kind!r})", "engine_kind")
    if instance_type in _LATER_TYPES:
        raise not_yet("instance_type", instance_type.name, "use GENERAL; prefill and decode then share an engine")
    if instance_type in (None, ExecutionInstanceType.GENERAL):
        return KINDS[engine_kind]
    return instance_type


def summary(instance: ExecutionInstance) -> dict[str, Any]:
    """An instance in a cluster's status."""
    return {
        "instance_id": instance.instance_id,
        "model_name": instance.model_name,
        "host": instance.host,
        "port": instance.port,
        "instance_type": instance.instance_type.name,
        "active_requests": instance.active_requests,
        "max_concurrent_requests": instance.max_concurrent_requests,
        "is_available": instance.is_available,
        "is_healthy": instance.is_healthy,
        "metadata": dict(instance.metadata),
    }


def backend(instance: ExecutionInstance) -> dict[str, Any]:
    """An instance in the list of back ends."""
    base = {key: value for key, value in summary(instance).items() if key != "instance_type"}
    return {**base, "base_url": f"http://{instance.host}:{instance.port}"}
