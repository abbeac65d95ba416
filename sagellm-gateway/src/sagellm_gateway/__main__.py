"""``python -m sagellm_gateway``: a gateway over the engine servers it is told of."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
