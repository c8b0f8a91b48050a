"""engine.policy.routing: where a group goes, without any server."""

import anyio

from engine.policy.routing import Routing, Server

A, B, C = "http://a:1", "http://b:2", "http://c:3"
GROUPS = [f"g{position:06d}" for position in range(300)]


def routing_over(*urls: str) -> tuple[Routing, list[Server]]:
    """A routing over healthy servers."""
    servers = [Server(url=url, healthy=True) for url in urls]
    return Routing(servers), servers


async def test_a_new_group_goes_to_the_least_loaded_server():
    """Load is what we have in flight there plus what the server said last."""
    routing, (a, b, c) = routing_over(A, B, C)
    a.reported, b.reported, c.reported = 5, 2, 3
    assert routing.route("g000001") is b
    b.flying = {f"rid{number}": anyio.CancelScope() for number in range(2)}
    assert routing.route("g000002") is c


def test_a_group_stays_where_it_is_whatever_the_load():
    """Its prefix is in that server's cache."""
    routing, (a, b) = routing_over(A, B)
    b.reported = 1
    assert routing.route("g000001") is a
    a.reported = 1_000
    assert routing.route("g000001") is a
    assert routing.route("g000002") is b


def test_equally_loaded_servers_share_the_groups():
    """Ties are broken by the group's name: each server has about a third, and the same one every time."""
    routing, servers = routing_over(A, B, C)
    again, _ = routing_over(A, B, C)
    routes = {group: routing.route(group) for group in GROUPS}
    assert [routes[group].url for group in GROUPS] == [again.route(group).url for group in GROUPS]
    for server in servers:
        assert 60 <= list(routes.values()).count(server) <= 140


def test_a_group_moves_as_a_whole_and_does_not_hop_back():
    """The first request after its server went away decides for the siblings; other groups stay where they are."""
    routing, servers = routing_over(A, B, C)
    before = {group: routing.route(group) for group in GROUPS}
    gone = servers[0]
    gone.healthy = False
    during = {group: routing.route(group) for group in GROUPS}
    assert gone not in during.values()
    assert {group: during[group] for group in GROUPS if before[group] is not gone} == {
        group: server for group, server in before.items() if server is not gone
    }
    gone.healthy = True
    assert {group: routing.route(group) for group in GROUPS} == during


def test_without_a_healthy_server_there_is_none():
    """And the group is where it was when its server is back first."""
    routing, (a, b) = routing_over(A, B)
    b.reported = 1
    assert routing.route("g000001") is a
    a.healthy = b.healthy = False
    assert routing.route("g000001") is None
    a.healthy, a.reported = True, 9
    assert routing.route("g000001") is a


def test_what_is_remembered_is_bounded():
    """A group in use is kept however many come and go; one that is not is forgotten, and placed anew."""
    routing, (a, b) = routing_over(A, B)
    b.reported = 1
    assert routing.route("used") is a
    assert routing.route("ended") is a
    a.reported = 2
    for number in range(10_000):
        routing.route(f"g{number:06d}")
        if number % 100 == 0:
            assert routing.route("used") is a
    assert routing.route("ended") is b
