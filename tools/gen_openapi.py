"""Write docs/openapi.json, the description of the engine's HTTP API."""

from __future__ import annotations

import json
from pathlib import Path

from sporevm.api.openapi import document

TARGET = Path(__file__).resolve().parent.parent / "docs/openapi.json"


def text() -> str:
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
