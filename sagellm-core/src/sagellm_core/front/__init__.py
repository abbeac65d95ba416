"""The engine's front: text in, text out, on either side of a core that knows only token ids.

Imports neither torch nor transformers.
"""

from __future__ import annotations
