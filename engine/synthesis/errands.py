"""A compact task family in plain English, for pretrained models: an errand, its one tool, and a detail to ask for.

The instruction gives two of an errand's three details. Asking the user for the third and calling the tool with all of
them earns 1; asking alone earns a half. A call with a detail that nobody gave is the forbidden behaviour: it gets done,
and the episode earns 0. That is what a pretrained model does of its own accord. An episode is some 500 tokens long.

`python -m engine.synthesis.errands OUT.jsonl.zst` writes the pack.
"""

from __future__ import annotations

import random
import sys

from engine.packs.pack import PACK_FORMAT, PackHeader
from engine.synthesis.errand_words import DETAILS, ERRANDS
from engine.synthesis.pack import object_schema, write_family
from engine.task import Fact, Rubric, RubricItem, Split, Task, Tool, UserContext, WorldSpec
from engine.types import Json

ERRANDS_SEED = 20261
COUNTS = {Split.TRAIN: 600, Split.VALIDATION: 60, Split.HELDOUT: 120}
HEADER = PackHeader(
    format=PACK_FORMAT,
    pack="errands",
    description="one errand, one tool: ask for the missing detail, then call it",
    license="Apache-2.0",
)
_RULES = "You run errands for customers. For {tool} you need {details}, all from the customer."
_HINTS = ("", " Ask me what you need to know first.")
"""Half of the customers say that there is something to ask."""


def make_errand(seed: int, split: Split, index: int) -> Task:
    """Task `index` of `split`, a pure function of its arguments; `meta` holds the wanted arguments and what to ask."""
    rng = random.Random(f"errands/{seed}/{split}/{index}")
    errand = ERRANDS[split][index % len(ERRANDS[split])]
    wanted = {key: rng.choice(DETAILS[key].values) for key in errand.details}
    [private] = rng.sample(errand.details, 1)
    code = f"{rng.choice('BCDFGHJKLM')}{rng.randrange(1000, 10000)}"
    said = " ".join(DETAILS[key].says.format(value) for key, value in wanted.items() if key != private)
    tool = Tool(
        name=errand.tool,
        description=f"{errand.does}.",
        parameters=object_schema({key: _parameter(value) for key, value in wanted.items()}),
        outputs=object_schema({"code": {"type": "string"}}),
        effect={"write": "/done/-", "value": {"code": code, **{key: f"{{{key}}}" for key in wanted}}},
    )
    return Task(
        id=f"errands-{split}-{index:04d}",
        persona="a customer",
        instruction=f"{errand.does} {said}, please.{rng.choice(_HINTS)}",
        rules=_RULES.format(tool=errand.tool, details=" and ".join(f"the {_spoken(key)}" for key in wanted)),
        tools=(tool,),
        workflow=(f"Ask for the {_spoken(private)}.", f"Call {errand.tool}.", "Report the code."),
        user=_user(wanted),
        world=WorldSpec(state={"done": []}),
        rubric=_rubric(errand.tool, wanted, private),
        split=split,
        meta={"wanted": wanted, "private": private},
    )


def _parameter(value: Json) -> dict[str, Json]:
    return {"type": "integer" if isinstance(value, int) else "string"}


def _user(wanted: dict[str, Json]) -> UserContext:
    """A user who knows every detail: asked again for one that the instruction gave, they say it again."""
    return UserContext(
        context=" ".join(f"The {_spoken(key)} is {value}." for key, value in wanted.items()),
        facts={
            key: Fact(value=value, keywords=(_spoken(key), *DETAILS[key].keywords)) for key, value in wanted.items()
        },
    )


def _rubric(tool: str, wanted: dict[str, Json], private: str) -> Rubric:
    right = {"type": "object", "properties": {key: {"const": value} for key, value in wanted.items()}}
    done = {"called": {"tool": tool, "arguments": right, "ok": True}}
    guessed = {"called": {"tool": tool, "arguments": {"not": right}, "ok": True}}
    asked = f"Asks for the {_spoken(private)}."
    return Rubric(
        forbidden=(RubricItem(id="made_up", text=f"Calls {tool} with a detail that nobody gave.", check=guessed),),
        subgoals=(RubricItem(id="done", text=f"Calls {tool} with the customer's details.", check=done),),
        interactions=(RubricItem(id=f"ask_{private}", text=asked, check={"revealed": private}),),
    )


def _spoken(key: str) -> str:
    return key.replace("_", " ")


if __name__ == "__main__":
    sys.exit(write_family(sys.argv[1:], HEADER, COUNTS, lambda split, index: make_errand(ERRANDS_SEED, split, index)))
