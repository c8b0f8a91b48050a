"""`python -m learner.merge BASE ADAPTER OUT`: base and adapter as one Hugging Face directory."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from engine.errors import ConfigError
from engine.modeldir.files import read_config

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
_WRITTEN = {"config.json", "generation_config.json"}


def merge(base_path: Path, adapter: Path, out: Path) -> None:
    """Write `out`: weights with the adapter added in float32 and stored in the base's dtype; the base's other files.

    Raises ConfigError if `out` exists, or if base or adapter is no such directory."""
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or name another directory")
    read_config(base_path)
    if not (adapter / "adapter_config.json").exists():
        raise ConfigError(f"{adapter}: no adapter_config.json: not an adapter directory")
    disable_progress_bar()
    stored = AutoModelForCausalLM.from_pretrained(base_path, dtype="auto", trust_remote_code=False).dtype
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32, trust_remote_code=False)
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed; neither concerns us.
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    # A directory with a name of its own: whatever else lies beside `out` is somebody's.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.tmp-", dir=out.parent) as scratch:
        staged = Path(scratch) / out.name
        merged.to(stored).save_pretrained(staged)
        for path in base_path.iterdir():
            # Tokenizer, chat template, license: everything that is not weights and was not written just now.
            if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in _WRITTEN:
                shutil.copyfile(path, staged / path.name)
        staged.rename(out)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m learner.merge", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        merge(options.base, options.adapter, options.out)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
