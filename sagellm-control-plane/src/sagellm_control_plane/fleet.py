"""The engines of a plane: what each was made of, its state, and its load as this plane accounts for it.

Plain values and synchronous changes; starting, polling and stopping engines happens elsewhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import anyio
import numpy as np

from sagellm_protocol import (
    EngineCapabilities,
    EngineHandle,
    EngineInfo,
    EngineRecord,
    EngineSpec,
    EngineState,
    EngineStats,
    ErrorCode,
    Launcher,
    ModelInfo,
    RenderedPrompt,
    SageLLMError,
)
from sagellm_protocol.interfaces import Engine

from .board import UNBOUNDED, UNKNOWN, Board, Flags, Place, Role, Rows
from .circuit import Circuit, Tolerance
from .interruptible import Interruptible
from .load import Load
from .ticket import Likeness, RenderKey, Ticket

_NEXT = {
    EngineState.STARTING: {EngineState.READY, EngineState.ERROR, EngineState.STOPPED},
    EngineState.READY: {EngineState.DRAINING, EngineState.ERROR, EngineState.STOPPED},
    EngineState.DRAINING: {EngineState.READY, EngineState.ERROR, EngineState.STOPPED},
    EngineState.ERROR: {EngineState.STARTING, EngineState.READY, EngineState.DRAINING, EngineState.STOPPED},
    EngineState.STOPPED: set[EngineState](),
}


@dataclass(frozen=True)
class Launched:
    """An engine that this plane started, and how to start it again."""

    launcher: str
    spec: EngineSpec
    through: Launcher | None = field(default=None, repr=False)
    """The launcher itself, where the one of that name would not do. Such an engine is known to this process alone."""
    launch: Mapping[str, Any] = field(default_factory=dict)
    """Options of the launcher of that name."""


@dataclass(frozen=True)
class Attached:
    """An engine that runs elsewhere."""

    url: str
    api_key: str | None = field(default=None, repr=False)


_SHOWN = frozenset({"state", "engine", "told", "failures", "capacity", "capabilities", "role", "weight", "circuit"})
"""What of a member the board shows beside its load."""


@dataclass(eq=False)
class Member:
    """One engine of the plane. Whoever changes it need not think of the board, which follows."""

    engine_id: str
    origin: Launched | Attached
    names: tuple[str, ...]
    """Names requests may use, until the engine itself says."""
    engine: Engine | None = None
    """Absent until it was started or reached."""
    handle: EngineHandle | None = None
    state: EngineState = EngineState.STARTING
    error: str | None = None
    stats: EngineStats | None = None
    load: Load = field(default_factory=Load)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    """Requests that have a place here, by number."""
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the last of them has left."""
    renders: set[Interruptible[RenderedPrompt]] = field(default_factory=set)
    """Prompts being rendered here."""
    failures: int = 0
    """Looks or attempts in a row that failed."""
    restarts: int = 0
    restarted_at: float | None = None
    restarted_unix: float | None = None
    """The same moment in Unix seconds, for people."""
    may_recover: bool = True
    """Whether starting it again could help; not after a refusal that would be the same again."""
    restarting: bool = False
    starting: anyio.CancelScope | None = None
    """Around the start that is under way."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever starts or stops what runs behind it, to the end of tidying up."""
    unwanted: bool = False
    """Drained: should it die, it is not started again, and should it come back, it gets nothing."""
    poke: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it should be looked at now."""
    last_heard: float | None = None
    """Unix seconds of the last sign of life."""
    since_s: int = field(default_factory=lambda: int(time.time()))
    capacity: int = 1
    most_sequences: int | None = None
    """Sequences that an operator lets this plane send there at most."""
    told: EngineState = EngineState.STARTING
    """The engine's own word on its state. This and what follows is as last heard: asking for each decision would
    cost more than deciding."""
    render_key: RenderKey = ("", None)
    """Equal for engines that read the same tokens out of a request."""
    likeness: Likeness | None = None
    """Engines of equal likeness give the same answer to the same request; ``None`` where that cannot be told."""
    capabilities: EngineCapabilities = field(default_factory=EngineCapabilities)
    mock: bool = False
    circuit: Circuit = field(default_factory=lambda: Circuit(Tolerance()))
    """Whether it is sent anything, by how what it was sent fared. Call :meth:`refresh` after changing it."""
    role: Role = Role.BOTH
    """Which part of a request's work it takes."""
    weight: float = 1.0
    """Its share of requests where routing goes by weights."""
    source: Literal["asked", "discovered"] = "asked"
    """Whether someone asked for it, or a file that is watched did."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever its state changed."""
    place: Place | None = None
    """Where it runs, if that is known when it is added."""
    served: tuple[str, ...] = ()
    """Names of its model."""
    adapters: frozenset[str] = frozenset()
    """Names of its LoRA adapters."""
    board: Board | None = None
    """While it belongs to a fleet."""
    row: int | None = None
    """Its row there."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in _SHOWN and getattr(self, "row", None) is not None:
            self._show()
            if name == "capabilities" and self.board is not None:
                self.board.version += 1

    def show_on(self, board: Board | None, row: int | None) -> None:
        """Keep a board's row up to date from now on, or with ``None`` no longer."""
        self.board, self.row = board, row
        if board is None or row is None:
            self.load.board = None
            return
        self.load.show_on(board, row)
        self._show()

    def _show(self) -> None:
        board, row = self.board, self.row
        assert board is not None
        assert row is not None
        known = self.capabilities
        cached = known.total_blocks * known.block_size if known.total_blocks and known.block_size else UNKNOWN
        board.ready[row], board.suspect[row] = self.ready, self.suspect
        board.describe(
            row,
            capacity=self.capacity,
            devices=self.devices,
            max_len=known.max_model_len or UNBOUNDED,
            cache_tokens=cached,
            role=self.role,
            weight=self.weight,
        )

    def refresh(self) -> None:
        """Show what has changed inside one of its parts."""
        if self.row is not None:
            self._show()

    def become(self, state: EngineState, error: str | None = None) -> None:
        """Move to ``state``; a move that the life of an engine does not allow is our own mistake."""
        assert state is self.state or state in _NEXT[self.state], f"{self.state} to {state}"
        self.state, self.error = state, error
        self.moved.set()

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself, under the plane's id and in the plane's judgement of its state."""
        told = self.engine.info if self.engine is not None else self._expected()
        return told.model_copy(
            update={
                "engine_id": self.engine_id,
                "state": told.state if self.state is EngineState.READY else self.state,
                "error": self.error or told.error,
            }
        )

    def _expected(self) -> EngineInfo:
        launched = self.origin.spec if isinstance(self.origin, Launched) else None
        return EngineInfo(
            engine_id=self.engine_id,
            engine=launched.engine if launched else "remote",
            model=launched.model if launched else next(iter(self.names), "unknown"),
            served_names=self.names,
            state=self.state,
        )

    @property
    def ready(self) -> bool:
        """Whether it takes requests now, in the plane's view and its own."""
        return (
            self.state is EngineState.READY
            and self.engine is not None
            and self.told is EngineState.READY
            and self.circuit.admits
        )

    @property
    def suspect(self) -> bool:
        """Whether the last thing heard of it was a failure."""
        return self.failures > 0

    @property
    def hopeful(self) -> bool:
        """Whether it takes requests, or may before long without anyone's doing."""
        if self.told is EngineState.SLEEPING and self.state is EngineState.READY:
            return self.restarting
        return self.restarting or self.state in (EngineState.STARTING, EngineState.READY)

    def learn(self, default_capacity: int, slack: float) -> None:
        """Take in what the engine says of itself, once it runs and whenever it was looked at."""
        assert self.engine is not None
        info = self.engine.info
        self.told, self.mock = info.state, info.mock
        if info.capabilities != self.capabilities:
            self.capabilities = info.capabilities
        self.learn_names()
        self.render_key = (info.model_key or f"{info.engine}:{info.model}", info.capabilities.block_size)
        known = self.capabilities
        self.likeness = (info.model_key, known.dtype, known.quantization) if info.model_key is not None else None
        limit = self.capabilities.max_num_seqs
        self.capacity = default_capacity if limit is None else limit + math.ceil(limit * slack)
        if self.most_sequences is not None:
            self.capacity = min(self.capacity, self.most_sequences)

    def learn_names(self) -> None:
        """Take in the names of its model and its adapters."""
        assert self.engine is not None
        info = self.engine.info
        self.served = info.served_names
        self.adapters = frozenset(adapter.name for adapter in info.adapters or ())

    def could_serve(self, ticket: Ticket) -> bool:
        """Whether it offers what a request needs, room aside. One that has not told yet might."""
        if self.engine_id in ticket.tried:
            return False
        if ticket.likeness is not None and self.engine is not None and self.likeness != ticket.likeness:
            return False
        if self.engine is None:
            return True
        if ticket.request.adapter is not None and ticket.request.adapter not in self.adapters:
            return False
        longest = self.capabilities.max_model_len
        return ticket.features <= self.capabilities.features and (longest is None or ticket.needed_tokens <= longest)

    def has_room(self, sequences: int) -> bool:
        """Whether that many more sequences may be sent; to an empty engine any number."""
        return self.load.sequences == 0 or self.load.sequences + sequences <= self.capacity

    def record(self) -> EngineRecord:
        """For :class:`~sagellm_protocol.PlaneStatus`."""
        return EngineRecord(
            info=self.info,
            stats=self.stats,
            launcher=self.origin.launcher if isinstance(self.origin, Launched) else None,
            url=self.origin.url if isinstance(self.origin, Attached) else None,
            in_flight=len(self.tickets),
            circuit=self.circuit.state.value,
        )

    @property
    def devices(self) -> int:
        """Devices it occupies, as far as the plane knows."""
        if not isinstance(self.origin, Launched):
            return 1
        spec = self.origin.spec
        return spec.tensor_parallel * spec.pipeline_parallel * spec.data_parallel


class Watcher(Protocol):
    """Is told which rows of the board belong to engines."""

    def joined(self, row: int) -> None:
        """An engine took a row."""
        ...

    def gone(self, row: int) -> None:
        """Its row was taken back."""
        ...


class Reserve(Protocol):
    """Knows of models that get engines when they are asked for."""

    def promises(self, model: str) -> bool:
        """Whether a model without a ready engine is to get one before long."""
        ...

    def refusal(self, model: str) -> SageLLMError | None:
        """Why not, where it should have."""
        ...

    def admit(self, model: str) -> bool:
        """Take one more in to wait for such a model, if it is one; raises when as many wait as may."""
        ...


class Fleet:
    """Engines by id and by the names they serve, and the board that shows them.

    Satisfies :class:`~sagellm_control_plane.scheduling.Candidates` for tickets.
    """

    def __init__(self) -> None:
        self.board = Board()
        self._at: dict[int, Member] = {}
        self._watcher: Watcher | None = None
        self.reserve: Reserve | None = None
        self._rows: dict[str, Rows] = {}
        self._offering: dict[frozenset[str], tuple[int, Flags]] = {}
        self._members: dict[str, Member] = {}
        self._by_name: dict[str, dict[str, Member]] = {}
        self._known_since: dict[str, int] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, engine_id: str) -> bool:
        return engine_id in self._members

    def get(self, engine_id: str) -> Member | None:
        """The engine of that id, if there is one."""
        return self._members.get(engine_id)

    def member(self, engine_id: str) -> Member:
        """The engine of that id.

        Raises:
            SageLLMError: ``NOT_FOUND``, listing those there are.
        """
        found = self._members.get(engine_id)
        if found is None:
            known = ", ".join(sorted(self._members)) or "none"
            raise SageLLMError(ErrorCode.NOT_FOUND, f"no engine {engine_id!r} here; there are: {known}", "engine_id")
        return found

    def add(self, member: Member) -> None:
        """Take an engine in.

        Raises:
            SageLLMError: ``CONFLICT`` when its id is in use.
        """
        if member.engine_id in self._members:
            raise SageLLMError(
                ErrorCode.CONFLICT,
                f"engine id {member.engine_id!r} is in use; choose another or stop that engine first",
                "engine_id",
            )
        self._members[member.engine_id] = member
        row = self.board.join(member.engine_id, member.place)
        self._at[row] = member
        member.show_on(self.board, row)
        self.rename(member, member.names)
        if self._watcher is not None:
            self._watcher.joined(row)

    def remove(self, member: Member) -> None:
        """Let an engine go."""
        if self._members.get(member.engine_id) is member:
            self.rename(member, ())
            del self._members[member.engine_id]
            row = member.row
            assert row is not None
            member.show_on(None, None)
            del self._at[row]
            if self._watcher is not None:
                self._watcher.gone(row)
            self.board.leave(row)

    def rename(self, member: Member, names: tuple[str, ...]) -> None:
        """Let an engine serve under other names."""
        for name in {*member.names, *names}:
            self._rows.pop(name, None)
        for name in member.names:
            serving = self._by_name.get(name, {})
            serving.pop(member.engine_id, None)
            if not serving:
                self._by_name.pop(name, None)
        member.names = names
        for name in names:
            self._by_name.setdefault(name, {})[member.engine_id] = member
            self._known_since.setdefault(name, member.since_s)

    def watched_by(self, watcher: Watcher) -> None:
        """Tell someone of comings and goings from now on."""
        self._watcher = watcher

    def at(self, row: int) -> Member:
        """The engine of a row."""
        return self._at[row]

    def rows(self, model: str) -> Rows:
        """Rows of the engines that serve a name."""
        found = self._rows.get(model)
        if found is None:
            rows = sorted(member.row for member in self.serving(model) if member.row is not None)
            found = np.array(rows, np.int64)
            if rows:
                self._rows[model] = found
        return found

    def able(self, request: Ticket, rows: Rows) -> Rows:
        """Those that offer what a request needs, and have not failed it."""
        if request.turn is None or request.turn.done():
            # Its caller has gone, and is about to take it out of the queue.
            return rows[:0]
        known = self._offering.get(request.features)
        if known is None or known[0] != self.board.version:
            if len(self._offering) > 256:
                self._offering.clear()
            flags = np.zeros(len(self.board), np.bool_)
            for row, member in self._at.items():
                flags[row] = request.features <= member.capabilities.features
            known = self._offering[request.features] = (self.board.version, flags)
        kept = rows[known[1][rows] & (self.board.max_len[rows] >= request.needed_tokens)]
        if request.likeness is not None:
            kept = kept[[self._at[int(row)].likeness == request.likeness for row in kept]]
        for engine_id in request.tried:
            failed = self._members.get(engine_id)
            if failed is not None:
                kept = kept[kept != failed.row]
        adapter = request.request.adapter
        if adapter is not None and adapter != request.request.model:  # else those that have it are the rows given
            kept = kept[np.array([adapter in self._at[int(row)].adapters for row in kept], np.bool_)]
        return kept

    def sequences(self, request: Ticket) -> int:
        """Sequences that a request makes an engine run."""
        return request.sequences

    def wished(self, request: Ticket) -> int | None:
        """The engine that its caller prefers."""
        member = self._members.get(request.hints.prefer_engine or "")
        return member.row if member is not None else None

    def serving(self, name: str) -> tuple[Member, ...]:
        """Engines that serve a name, in the order in which they came to."""
        return tuple(self._by_name.get(name, {}).values())

    def adapter(self, name: str) -> bool:
        """Whether a name is that of an adapter."""
        return any(name in member.adapters for member in self.serving(name))

    def promised(self, name: str) -> bool:
        """Whether a name that no engine serves now is to be served before long."""
        return self.reserve is not None and self.reserve.promises(name)

    def names(self) -> list[str]:
        """All names served."""
        return sorted(self._by_name)

    def models(self) -> list[ModelInfo]:
        """What can be asked for."""
        models = []
        for name in self.names():
            members = self.serving(name)
            started = [member for member in members if member.engine is not None]
            lengths = [length for member in started if (length := member.capabilities.max_model_len)]
            models.append(
                ModelInfo(
                    name=name,
                    parent=next((member.served[0] for member in started if name in member.adapters), None),
                    engines=len(members),
                    ready=sum(member.ready for member in members),
                    mock=any(member.mock for member in started),
                    features=frozenset[str]().union(*(member.capabilities.features for member in started)),
                    max_model_len=max(lengths, default=None),
                    created_s=self._known_since[name],
                )
            )
        return models
