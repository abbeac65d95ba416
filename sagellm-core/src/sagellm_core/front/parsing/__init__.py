"""What a model wrote, taken apart as it comes: the machinery that parsers of tool calls and of reasoning share.

A parser is a routine that reads text from the front and waits where it runs out, so that no split of the text into
pieces can change what it finds. Knows nothing of tokens, requests or events.
"""

from __future__ import annotations
