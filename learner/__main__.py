"""`python -m learner RUN_DIR`: the learner process of one run; with several ranks, `torchrun -m learner RUN_DIR`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

import structlog
import torch
from torch.distributed.elastic.multiprocessing.errors import record

from engine.config.environment import environment
from engine.config.load import load
from engine.config.tree import Config
from engine.errors import ConfigError, RunError
from engine.rundir.layout import RunDir
from engine.telemetry.log import configure_logging
from learner.follow import follow
from learner.lifetime import Lifetime
from learner.loop import Learner
from learner.ranks import RankLostError, Ranks
from learner.step import AbandonedError, NotFiniteError

EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the learner; returns the exit code: 0 done or stopped, 1 failed, 2 configuration."""
    parser = argparse.ArgumentParser(prog="python -m learner", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--flush", action="store_true", help="train the groups left over when the stream is closed")
    parser.add_argument("--parent-pid", type=int, help="end when the parent process is no longer this one")
    options = parser.parse_args(arguments)
    lifetime = Lifetime()
    run = RunDir(options.run)
    try:
        config = load(run.config).config
        if config.learner_ranks == 1:
            lifetime.install(options.parent_pid)
        else:
            lifetime.install_rank(leads=environment("RANK") == "0")
        configure_logging(run.log, "learner")
        torch.set_num_threads(config.learner.threads)
        ranks = Ranks.join(config)
        if not ranks.leads:
            return accompany(run, config, ranks)
        return serve(Learner(run, config, lifetime, ranks), flush=options.flush)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the process's last word
        return EXIT_CONFIG


def serve(learner: Learner, *, flush: bool) -> int:
    """Serve, turn an error into the last word in progress.json and on stderr, and return the exit code."""
    try:
        learner.serve(flush=flush)
    except AbandonedError as error:
        structlog.get_logger("learner").warning(str(error))
    except RankLostError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the process's last word
        return EXIT_FAILED
    except ConfigError as error:
        # Of several ranks, torchrun has one exit code for whatever happened: the supervisor has to be told in words.
        if learner.ranks.count > 1:
            _fail(learner, str(error))
        raise
    except RunError as error:
        step = learner.counters.step + 1
        named = isinstance(error, NotFiniteError)
        groups = f" Its groups: {', '.join(usable.group.id for usable in learner.opened.usable)}." if named else ""
        sentence = f"step {step}: {error}; nothing was published.{groups}" if named else str(error)
        print(sentence, file=sys.stderr)  # noqa: T201 - the process's last word
        _fail(learner, sentence)
        return EXIT_FAILED
    learner.ranks.leave()
    return EXIT_OK


def _fail(learner: Learner, sentence: str) -> None:
    # A full disk takes no progress.json either.
    with suppress(RunError):
        learner.fail(sentence)


def accompany(run: RunDir, config: Config, ranks: Ranks) -> int:
    """Follow rank 0, and return the exit code; what went wrong for all of them, rank 0 says in progress.json."""
    try:
        follow(run, config, ranks)
    except AbandonedError as error:
        structlog.get_logger("learner").warning(str(error))
    except (RankLostError, RunError) as error:
        print(f"rank {ranks.rank}: {error}", file=sys.stderr)  # noqa: T201 - the process's last word
        return EXIT_FAILED
    ranks.leave()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(record(main)())
