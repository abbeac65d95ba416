"""Parts of the mock engine: its options, its text, its blocks, its requests and the decisions of its steps."""

from __future__ import annotations
