"""The registry of adapter versions."""

from hypothesis import given
from hypothesis import strategies as st

from engine.core.versions import Versions


def test_a_new_version_is_loaded_then_current_then_the_old_one_goes_with_its_last_lease() -> None:
    """The swap order is load, flip, drain, unload."""
    versions = Versions(slots=3)
    versions.announced = 0
    assert versions.next_load() == 0
    versions.flip(0)
    held = versions.lease()
    versions.announced = 1
    assert versions.next_load() == 1
    versions.flip(1)
    assert versions.current == 1
    assert versions.unloadable() == []
    versions.release(held)
    assert versions.unloadable() == [0]
    versions.forget(0)
    assert versions.loaded == (1,)


def test_a_new_version_waits_for_a_free_slot() -> None:
    """With every slot leased nothing is loaded, and nothing evicted."""
    versions = Versions(slots=2)
    for version in (0, 1):
        versions.announced = version
        versions.flip(version)
        versions.lease()
    versions.announced = 2
    assert versions.next_load() is None
    versions.release(0)
    versions.forget(*versions.unloadable())
    assert versions.next_load() == 2


def test_only_the_newest_announced_version_is_loaded() -> None:
    """A version that was overtaken before it was loaded is skipped."""
    versions = Versions(slots=4)
    versions.flip(0)
    versions.announced = 3
    assert versions.next_load() == 3


def test_an_evaluation_holds_an_old_version() -> None:
    """A lease of a named version keeps it loaded and does not make it current."""
    versions = Versions(slots=4)
    versions.flip(5)
    versions.flip(0)
    assert versions.current == 5
    assert versions.lease(0) == 0
    assert versions.unloadable() == []
    versions.release(0)
    assert versions.unloadable() == [0]


@given(st.lists(st.sampled_from(["announce", "load", "lease", "release", "collect"]), max_size=200))
def test_never_more_loaded_than_slots_and_never_a_leased_one_unloaded(actions: list[str]) -> None:
    """Whatever the order of events, the servers are never asked for more than they hold."""
    versions = Versions(slots=3)
    versions.flip(0)
    held: list[int] = []
    for action in actions:
        if action == "announce":
            versions.announced += 1
        elif action == "load" and (version := versions.next_load()) is not None:
            versions.flip(version)
        elif action == "lease":
            held.append(versions.lease())
        elif action == "release" and held:
            versions.release(held.pop(0))
        elif action == "collect":
            for version in versions.unloadable():
                assert version not in held
                versions.forget(version)
        assert len(versions.loaded) <= 3
        assert versions.current in versions.loaded
