"""engine.run.progress and swap: what is freed, loaded, kept and deleted as the learner publishes."""

import anyio
import pytest
from anyio import to_thread

from engine.core.versions import Versions
from engine.run.progress import LearnerFollower
from engine.run.swap import AdapterSwap
from engine.rundir.layout import RunDir, write_json
from tests.parts.waiting import until


class Recording:
    """Servers that take their time to unload."""

    def __init__(self):
        self.calls, self.unloading = [], anyio.Event()

    async def load(self, name, path):
        self.calls.append(("load", name))

    async def unload(self, name):
        self.calls.append(("unload", name))
        await self.unloading.wait()


@pytest.fixture
def run(tmp_path):
    """A run directory with version 0 published."""
    run = RunDir(tmp_path / "run")
    run.create()
    publish(run, 0)
    return run


def publish(run, version):
    """A version as the learner leaves it: the directory, then its word."""
    run.adapter(version).mkdir()
    (run.adapter(version) / "meta.json").write_text("{}")
    told = {"step": version, "version": version, "trained_groups": 10 * version, "dropped": {"stale": version}}
    write_json(run.progress, told)


def follower_of(run, **changes):
    """A follower of the run's learner over recording servers."""
    settings = {
        "run": run,
        "run_id": "demo-1f0c2a9b",
        "versions": Versions(slots=5),
        "servers": Recording(),
        "on_event": lambda _: None,
        "clock": lambda: 0.0,
        "keep_every": 100,
        "max_staleness": 1,
    }
    return LearnerFollower(run=run, swap=AdapterSwap(**(settings | changes)))


async def test_groups_are_free_before_an_old_version_is_gone(run):
    """The budget is freed as soon as the new adapter is current, however long a server takes to unload the old one."""
    follower = follower_of(run)
    heard = []
    follower.on_change = lambda: heard.append((follower.trained, follower.dropped))
    await follower.step()
    await to_thread.run_sync(publish, run, 1)
    async with anyio.create_task_group() as tg:
        tg.start_soon(follower.step)
        await until(lambda: ("unload", "demo-1f0c2a9b-v00000") in follower.swap.servers.calls)
        assert heard[-1] == (10, 1)
        follower.swap.servers.unloading.set()


@pytest.mark.parametrize("max_staleness", [1, 7])
def test_what_a_probe_may_still_read_is_kept(run, max_staleness):
    """Old versions go whole; those that a step may train on, and a few behind them, stay; so do first and best."""

    async def follow():
        follower = follower_of(run, max_staleness=max_staleness, keep_every=10)
        follower.swap.servers.unloading.set()
        for version in range(1, 20):
            await to_thread.run_sync(publish, run, version)
            await follower.step()
            await follower.step()

    (run.adapters / "best").symlink_to("v00003")
    anyio.run(follow)
    newest = set(range(19 - max_staleness - 3, 20))
    assert set(run.versions()) == newest | {0, 3, 10}
    assert not list(run.adapters.glob(".*"))
