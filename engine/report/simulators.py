"""What language models that play users, tools and judges did in a run: from metrics.jsonl to numbers, and to words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.audit.check import RunRecords

_REFUSED, _FAULT, _COUNT = "refused_", "fault_", "_count"


def simulators(recorded: RunRecords, episodes: int) -> dict[str, Any] | None:
    """`{"episodes", "parts": {...}, "endpoints": {...}, "mapping": {...}}` over all engine processes of a run.

    `episodes` is how many are recorded, evaluations included; None for a run without endpoints."""
    if not recorded.config.endpoints:
        return None
    found: dict[str, Any] = {"episodes": episodes, "parts": {}, "endpoints": {}, "mapping": {}}
    # In the order in which rows have them.
    for key in dict.fromkeys(key for row in recorded.rows for key in row):
        area, _, what = key.partition("/")
        kind, _, name = area.partition(".")
        if kind == "endpoint":
            place = found["endpoints"].setdefault(name, {"faults": {}})
        elif area in ("tool", "user", "judge"):
            place = found["parts"].setdefault(area, {"refused": {}})
        elif area == "mapping":
            place = found["mapping"]
        else:
            continue
        _put(place, what, recorded.total(key))
    return found


def _put(place: dict[str, Any], what: str, total: float) -> None:
    if not what.endswith(_COUNT):
        place["cost"] = total
        return
    name = what.removesuffix(_COUNT)
    for prefix, several in ((_REFUSED, "refused"), (_FAULT, "faults")):
        if name.startswith(prefix):
            place[several][name.removeprefix(prefix)] = int(total)
            return
    place[name] = int(total)


class SimulatorLine(NamedTuple):
    """One part in the table of the last words."""

    part: str
    replies: str
    """Of an episode."""
    tokens: str
    """Prompt and sampled ones, of an episode."""
    refused: str
    """Shares of the replies, by kind."""
    given_up: str
    cost: str


HEADER = SimulatorLine("", "calls per episode", "tokens per episode", "refused replies", "given up", "cost")


def table(values: Mapping[str, Any]) -> Iterator[SimulatorLine]:
    """A line for every part that was played."""
    episodes = max(1, values["episodes"])
    for part, counted in values["parts"].items():
        replies, tokens = counted["replies"], counted["prompt_tokens"] + counted["completion_tokens"]
        shares = (f"{kind} {count / replies:.1%}" for kind, count in _most_first(counted["refused"]))
        yield SimulatorLine(
            part=part,
            replies=f"{replies / episodes:.2f}",
            tokens=f"{tokens / episodes:,.0f}",
            refused=", ".join(shares) or "none",
            given_up=f"{counted['given_up']:,} of {counted['asked']:,}",
            cost=f"{counted['cost']:.4f}" if "cost" in counted else "",
        )


def simulator_sentences(values: Mapping[str, Any]) -> Iterator[str]:
    """What each endpoint went through, and how the mapping answered."""
    for name, counted in values["endpoints"].items():
        faults = ", ".join(f"{count:,} {kind}" for kind, count in _most_first(counted["faults"])) or "no faults"
        cost = f"; cost {counted['cost']:.4f}" if "cost" in counted else ""
        yield (
            f"endpoint {name}: {counted['requests']:,} requests: {counted['calls']:,} calls answered, {faults}, "
            f"{counted['abandoned']:,} abandoned; {counted['failed']:,} calls failed{cost}"
        )
    if values["mapping"]:
        yield "tool calls answered: " + ", ".join(f"{count:,} {how}" for how, count in values["mapping"].items())


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])
