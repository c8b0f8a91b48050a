"""`python -m learner.pretrain OUT`: make the tiny base model (tokenizer, weights) from nothing, in minutes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from learner.pretrain.corpus import Renderer
from learner.pretrain.probes import probe_tasks
from learner.pretrain.tokenizer import build_tokenizer
from learner.pretrain.train import Recipe, make


def main(arguments: list[str]) -> int:
    """Parse the command line and run the recipe."""
    default = Recipe()
    parser = argparse.ArgumentParser(prog="python -m learner.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--steps", type=int, default=default.steps, help="optimizer steps (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="seed of corpus and weights (default %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = make(chosen.out, Recipe(steps=chosen.steps, seed=chosen.seed))
    probes = probe_tasks(model, Renderer(build_tokenizer()))
    problems = probes.problems()
    sys.stderr.write(f"{probes}\n" + "".join(f"not usable: {problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
