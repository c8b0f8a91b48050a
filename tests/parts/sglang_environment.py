"""SGLang's own environment, for the tests that start the real server."""

import pytest

from engine.serving.install import installed
from engine.serving.sglang import environment_directory

DIRECTORY = environment_directory(cpu=True)
needs_sglang = pytest.mark.skipif(
    not installed(DIRECTORY, cpu=True),
    reason=f"SGLang is not installed in {DIRECTORY}: run `make sglang` (or `synth-engine install-sglang --cpu`)",
)
