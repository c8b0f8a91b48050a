"""What the procedural task families have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.packs.pack import PackHeader, write_pack
from engine.task import Split, Task


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of an object that has exactly these properties."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def write_family(
    arguments: Sequence[str], header: PackHeader, counts: Mapping[Split, int], make: Callable[[Split, int], Task]
) -> int:
    """A family's command line: write its pack, split by split, to the one path given."""
    if len(arguments) != 1:
        sys.stderr.write("give one path to write to, such as OUT.jsonl.zst\n")
        return 2
    write_pack(
        Path(arguments[0]), header, (make(split, index) for split, count in counts.items() for index in range(count))
    )
    return 0
