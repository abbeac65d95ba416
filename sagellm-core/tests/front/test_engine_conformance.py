"""The contract's own suite over the fake executor, in a thread and in a child process."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from fake_model import fake_engine, fake_spec, write_tokenizer
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.testing.conformance.engine import EngineConformance


class _OverTheFakeExecutor(EngineConformance):
    core: ClassVar[str]
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = write_tokenizer(tmp_path_factory.mktemp("fake"))

    def make_engine(self) -> Engine:
        return fake_engine(self.folder, fake_spec(self.core))


class TestInline(_OverTheFakeExecutor):
    core = "inline"


class TestProcess(_OverTheFakeExecutor):
    core = "process"
