"""Where the two servers do not do the same, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Where the two servers are not meant to agree."""

    names_adapter: bool
    """Whether a reply names its adapter. SGLang's does not; ours does, and the client checks it where it is said."""
    reloads: bool
    """Whether a request for an unloaded name loads it again from its old path. Ours refuses, so that a request sent
    too late is seen instead of being served from whatever the directory holds by then."""
    evicts: bool
    """Whether a load beyond the slots unloads another adapter. The engine waits for a slot, so ours refuses."""
    any_path: bool
    """Whether adapters are loaded from anywhere. Ours is told a root: it is a part of the run, not of the machine."""
    aborts_prefixes: bool
    """Whether an abort ends every request whose rid begins with the one named. Ours takes it as it is; the engine's
    rids are of one width, so that none is a prefix of another."""
    top_1_temperature: float | None
    """At which temperature top_k = 1 reports log-probabilities, None for the request's. SGLang's sampler has one path
    for batches that are greedy throughout; the engine trains on top_k = -1 only."""
    context_spare: int
    """Tokens of the context that no completion gets, and whether a prompt that leaves six is refused. The client leaves
    SGLang's scheduler what it keeps back."""


EMBEDDED = Differences(
    names_adapter=True,
    reloads=False,
    evicts=False,
    any_path=False,
    aborts_prefixes=False,
    top_1_temperature=None,
    context_spare=0,
)
SGLANG = Differences(
    names_adapter=False,
    reloads=True,
    evicts=True,
    any_path=True,
    aborts_prefixes=True,
    top_1_temperature=1.0,
    context_spare=2,
)
