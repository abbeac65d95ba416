"""Write the schemas of the wire: ``python -m sagellm_protocol.schemas``."""

from __future__ import annotations

from . import write

if __name__ == "__main__":
    write()
