"""The NVIDIA GPUs of this machine, as `nvidia-smi` tells them: the engine has no torch to ask."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_QUERY = ("--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in MiB."""

    index: int
    name: str
    total_mib: int
    free_mib: int


def gpus() -> list[Gpu]:
    """All GPUs that the driver shows, by index; none where there is no driver, or it does not answer."""
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    try:
        asked = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return parse_gpus(asked.stdout)


def parse_gpus(table: str) -> list[Gpu]:
    """The GPUs of a table in `nvidia-smi`'s CSV; rows that do not say their memory (a failed card) are left out."""
    found = []
    for line in table.splitlines():
        index, name, total, free = (cell.strip() for cell in [*line.split(","), "", "", "", ""][:4])
        if index.isdigit() and total.isdigit() and free.isdigit():
            found.append(Gpu(index=int(index), name=name, total_mib=int(total), free_mib=int(free)))
    return found
