"""The registry's file: SQLite, in one process at a time. Synchronous; called in a thread.

A rollback journal rather than a write-ahead log, because it can be read, and so a plane started, where a disk is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from sagellm_protocol import ErrorCode, SageLLMError

from .entries import EngineEntry

LAYOUT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS engines (engine_id TEXT PRIMARY KEY, entry TEXT NOT NULL, heard REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aliases (name TEXT PRIMARY KEY, targets TEXT NOT NULL) WITHOUT ROWID;
"""
Targets = Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """Rows as they are to be; ``None`` for those that are to be gone."""

    engines: Mapping[str, EngineEntry | None] = field(default_factory=dict)
    heard: Mapping[str, float] = field(default_factory=dict)
    aliases: Mapping[str, Targets | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """All that the file holds."""

    engines: dict[str, EngineEntry] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    aliases: dict[str, Targets] = field(default_factory=dict)


class Store:
    """The file, open. Its owner alone may read it: it holds the keys of engines.

    Args:
        path: The file; made where there is none.

    Raises:
        SageLLMError: ``CONFLICT`` while another process has it open; ``INVALID_REQUEST`` for a file that is damaged, no
            registry, of a newer layout, or that cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _locked(path)
        try:
            with _refusing(path):
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
                self._prepare()
        except BaseException:
            os.close(self._lock)
            raise

    def load(self) -> Kept:
        """All that is kept.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for rows that this version cannot read.
        """
        kept = Kept()
        with _refusing(self._path):
            for engine_id, text, heard in self._db.execute("SELECT engine_id, entry, heard FROM engines"):
                kept.engines[engine_id] = EngineEntry.model_validate_json(text)
                if heard is not None:
                    kept.heard[engine_id] = heard
            for name, targets in self._db.execute("SELECT name, targets FROM aliases"):
                kept.aliases[name] = json.loads(targets)
        return kept

    def apply(self, change: Change) -> None:
        """Make all of a change, or raise and make none of it.

        Raises:
            sqlite3.Error: What the disk or SQLite says.
        """
        with self._transaction() as db:
            for engine_id, entry in change.engines.items():
                if entry is None:
                    db.execute("DELETE FROM engines WHERE engine_id = ?", (engine_id,))
                else:
                    db.execute(
                        "INSERT INTO engines (engine_id, entry) VALUES (?, ?)"
                        " ON CONFLICT (engine_id) DO UPDATE SET entry = excluded.entry",
                        (engine_id, entry.model_dump_json(exclude_defaults=True)),
                    )
            for engine_id, moment in change.heard.items():
                db.execute("UPDATE engines SET heard = ? WHERE engine_id = ?", (moment, engine_id))
            for name, targets in change.aliases.items():
                if targets is None:
                    db.execute("DELETE FROM aliases WHERE name = ?", (name,))
                else:
                    db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (name, json.dumps(dict(targets))))

    def close(self) -> None:
        """Let others open it."""
        self._db.close()
        os.close(self._lock)

    def _prepare(self) -> None:
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout > LAYOUT:
            raise sqlite3.DatabaseError(f"its layout is {layout}, and this version reads {LAYOUT}")
        if layout < LAYOUT:
            with self._transaction() as db:
                for statement in _TABLES.strip().splitlines():
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {LAYOUT}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            # A disk that is full may have rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _locked(path: Path) -> int:
    """A descriptor that holds the lock beside the file, until it is closed or this process ends in whatever way."""
    with _refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SageLLMError(
            ErrorCode.CONFLICT,
            f"the registry {path} is in use by another control plane; stop that one, or name another file",
            "registry",
        ) from None
    return descriptor


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, ValidationError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"the registry {path} cannot be used: {said}; mend it, move it away to begin anew, or name another file",
            "registry",
        ) from error
