"""Suites that an implementer of an interface subclasses in its tests.

They need pytest and pytest-asyncio; the one for backends needs pytest and NumPy.

A suite is a class of tests with hooks that make what is tested::

    class TestMyEngine(EngineConformance):
        def make_engine(self) -> Engine:
            return create(EngineSpec(model="..."))
"""

from __future__ import annotations

import pytest

# Without this a failing comparison in a suite would not show its values.
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in ("backend", "control_plane", "engine", "launcher")))
