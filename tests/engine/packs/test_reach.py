"""engine.packs.reach: what is said to be reached by no call is reached by none."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.packs.reach import Reach
from engine.task import Rubric, Task, Tool, WorldSpec
from engine.types import ToolCall
from engine.world.tools import apply
from tests.parts.worlds import TEXT, shop

_TOKENS = st.sampled_from(["a", "b", "0", "-", "{x}", "{y}", "a{x}"])
_POINTERS = st.lists(_TOKENS, min_size=1, max_size=3).map(lambda tokens: "".join(f"/{token}" for token in tokens))
_LEAVES = st.sampled_from([1, "a", "{x}", "{y}", "b{x}", None])
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", "0", "{x}"]), inner, max_size=2) | st.lists(inner, max_size=2)
    ),
    max_leaves=5,
)
_STATES = st.dictionaries(
    st.sampled_from("ab0"),
    st.recursive(
        st.sampled_from([1, "a", "b"]),
        lambda inner: st.dictionaries(st.sampled_from("ab0"), inner, max_size=2) | st.lists(inner, max_size=2),
        max_leaves=5,
    ),
    max_size=2,
)
_EFFECTS = st.one_of(
    st.fixed_dictionaries({"read": _POINTERS}),
    st.fixed_dictionaries(
        {"write": _POINTERS, "value": _VALUES}, optional={"requires": st.dictionaries(_POINTERS, _LEAVES, max_size=1)}
    ),
)
_ARGUMENTS = st.fixed_dictionaries(
    {"x": st.sampled_from(["a", "b", "0", "-", 0, True, None, {"a": {"b": 1}}, [{}]])},
    optional={"y": st.sampled_from(["a", "0", 1])},
)
_CALLS = st.lists(st.tuples(st.integers(0, 3), _ARGUMENTS), max_size=8)


@settings(max_examples=300)
@given(_STATES, st.lists(_EFFECTS, min_size=1, max_size=4), _CALLS)
def test_what_is_not_reached_is_reached_by_no_call(
    start: dict[str, Any], effects: list[dict[str, Any]], calls: list[tuple[int, dict[str, Any]]]
):
    """Whatever is called in whatever order: a call that succeeds was not said to be refused."""
    parameters = {"type": "object", "properties": {"x": {}, "y": TEXT | {"type": ["string", "integer"]}}}
    tools = [
        Tool(name=f"t{index}", description="", parameters=parameters, effect=one) for index, one in enumerate(effects)
    ]
    task = Task(id="t", instruction="t", rubric=Rubric(), tools=tuple(tools), world=WorldSpec(state=start))
    reach, now = Reach(task), task.world.state
    for index, arguments in calls:
        called_tool = tools[index % len(tools)]
        done = apply(task, now, ToolCall(name=called_tool.name, arguments=arguments))
        now = done.state
        if done.ok:
            assert reach.refusal(called_tool) is None
            assert reach.refusal(called_tool, arguments) is None


def test_the_shop_is_reached():
    """Of the shop's tools none is refused."""
    task = shop()
    assert [Reach(task).refusal(one) for one in task.tools] == [None] * len(task.tools)
