"""`python -m sporevm.cli`: the same as `spore`."""

from __future__ import annotations

import sys

from sporevm.cli.main import main

sys.exit(main())
