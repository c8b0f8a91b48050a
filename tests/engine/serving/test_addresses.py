"""engine.serving.addresses: ports, and servers.json."""

from itertools import count

import pytest

from engine.config.load import load
from engine.rundir.layout import RunDir, read_json, write_json
from engine.serving.addresses import addresses, endpoint_urls, free_addresses, write_addresses

BOTH = [
    *("user.kind=llm", "user.endpoint=far", "scorer.judge=near", "endpoints.far.url=https://host/api"),
    *("endpoints.near.launch=sglang", "endpoints.near.model=tiny", "endpoints.near.start_s=9"),
]


def test_every_started_server_has_a_port_and_a_limit():
    """The policy's first."""
    config = load(None, [*BOTH, "policy.servers=2", "policy.start_s=5"]).config
    found = addresses(config, count(70))
    assert [(one.url, one.start_s) for one in found] == [
        *(("http://127.0.0.1:70", 5), ("http://127.0.0.1:71", 5), ("http://127.0.0.1:72", 9))
    ]
    assert [one.start_key for one in found] == ["policy.start_s", "policy.start_s", "endpoints.near.start_s"]
    assert len({one.port for one in free_addresses(config)}) == 3


@pytest.mark.parametrize(
    ("policy", "urls"),
    [([], ["http://127.0.0.1:70"]), (["policy.launch=none", 'policy.urls=["http://p"]'], ["http://p"])],
)
def test_endpoints_are_found_where_they_are_started_or_named(tmp_path, policy, urls):
    """The engine reads both from one place."""
    run, config = RunDir(tmp_path), load(None, [*BOTH, *policy]).config
    started = addresses(config, count(70))
    assert write_addresses(run, config, started) == urls
    assert read_json(tmp_path / "servers.json")["urls"] == urls
    assert endpoint_urls(run, config) == {"far": "https://host/api", "near": started[-1].url}


def test_without_started_endpoints_nothing_needs_to_be_written(tmp_path):
    """Whoever starts the policy's servers by hand names only those, or none."""
    config = load(None, ["scorer.judge=far", "endpoints.far.url=http://a"]).config
    assert endpoint_urls(RunDir(tmp_path), config) == {"far": "http://a"}
    write_json(tmp_path / "servers.json", {"urls": ["http://p"]})
    assert endpoint_urls(RunDir(tmp_path), config) == {"far": "http://a"}
