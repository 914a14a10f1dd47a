"""``python -m nrt.cli`` is ``nrt``."""

from __future__ import annotations

import sys

from nrt.cli import main

__all__: list[str] = []

sys.exit(main())
