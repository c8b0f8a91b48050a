"""The formats that `synth-engine pack import` reads, by name."""

from __future__ import annotations

from collections.abc import Mapping

from engine.importing.agenticqwen.format import AGENTICQWEN
from engine.importing.format import ImportFormat

FORMATS: Mapping[str, ImportFormat] = {"agenticqwen": AGENTICQWEN}
