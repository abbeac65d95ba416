"""Calls of MiniMax-M2: ``<minimax:tool_call><invoke name="f"><parameter name="key">value</parameter></invoke>…``.

Source: the chat template of MiniMax-M2.
"""

from __future__ import annotations

from .xml_calls import XMLCalls


class MiniMax(XMLCalls):
    """Tags with their names as attributes."""

    markers = ("<minimax:tool_call>", "</minimax:tool_call>")
    block = ("<minimax:tool_call>", "</minimax:tool_call>")
    call = ('<invoke name="', '">', "</invoke>")
    argument = ('<parameter name="', '">', "</parameter>")
