"""Which heartbeats are replied to at once, and with what."""

from __future__ import annotations

from typing import Any

import pytest

from flowgentic_actors.cluster.nodes.cluster_plan import ClusterPlan
from flowgentic_actors.cluster.nodes.heartbeats import HeartbeatDesk
from flowgentic_actors.cluster.nodes.leases import LEASE_SHARE, TICK, GrantedLeases
from flowgentic_actors.cluster.nodes.placement import Placement
from flowgentic_actors.cluster.protocol.host import EndNode, Heartbeat
from flowgentic_actors.event_kinds import EventKind

TIMEOUT = 3.0
EVENT = (EventKind.ACTOR_EXITED, "shard-1", "")


class Office:
    """The desk of a cluster of the nodes a, b and c, whose first plan is not stored yet."""

    def __init__(self) -> None:
        leases = GrantedLeases(TIMEOUT * LEASE_SHARE, TIMEOUT, TICK)
        self.placement = Placement(
            ClusterPlan(version=0, shards=[]),
            "a",
            replicas=1,
            degrade=False,
            recovers=False,
            leases=leases,
        )
        self.desk = HeartbeatDesk(self.placement, leases, "a")
        self.desk.join("abc")
        self.placement.place("abc")
        self.now = 0.0

    def publish(self) -> None:
        self.desk.published = self.placement.plan.version

    def pass_(self, seconds: float) -> set[str]:
        lost: set[str] = set()
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            lost |= self.desk.tick(self.now)
        return lost

    def beat(self, node: str = "b", **fields: Any) -> Heartbeat:
        given: dict[str, Any] = {"known": 0, "replicas": (), "events": ()} | fields
        return Heartbeat(node=node, host="", **given)


@pytest.fixture
def office() -> Office:
    return Office()


def test_nothing_is_granted_before_the_plan_is_stored(office: Office) -> None:
    desk, first = office.desk, office.beat()
    desk.heard(first)
    assert desk.must_publish
    assert not desk.has_news_for(first)
    reply = desk.reply(first, office.now)
    assert (reply.lease, reply.assignments) == (0.0, None)
    assert desk.assignments_here(0) is None

    office.publish()
    assert desk.has_news_for(first)
    reply = desk.reply(first, office.now)
    assert reply.lease == desk.lease > 0
    assert reply.assignments is not None
    assert [assignment.shard for assignment in reply.assignments.per_shard] == [1]
    here = desk.assignments_here(0)
    assert here is not None
    assert [assignment.shard for assignment in here.per_shard] == [0]

    known = office.beat(known=reply.assignments.version)
    desk.heard(known)
    assert not desk.has_news_for(known)
    assert desk.reply(known, office.now).lease > 0
    assert desk.reply(known, office.now).assignments is None


def test_a_node_whose_own_assignments_are_stored_has_a_lease_while_others_change(
    office: Office,
) -> None:
    office.publish()
    office.placement.lost("c", "it is gone")
    assert office.desk.must_publish
    office.desk.heard(office.beat("b"))
    assert office.desk.reply(office.beat("b"), office.now).lease > 0
    assert office.desk.assignments_here(0) is None


def test_a_node_that_has_joined_is_not_silent_before_its_first_heartbeat(office: Office) -> None:
    assert office.pass_(10 * TIMEOUT) == set()
    office.desk.heard(office.beat("b"))
    assert office.pass_(2 * TIMEOUT) == {"b"}
    assert office.desk.others == {"c"}
    office.desk.heard(office.beat("b"))
    assert office.desk.others == {"b", "c"}


def test_events_are_told_once_however_often_they_come(office: Office) -> None:
    first = office.beat(events=(EVENT, EVENT))
    assert office.desk.heard(first) == (EVENT, EVENT)
    assert office.desk.reply(first, 0.0).events_to == 2
    more = office.beat(events=(EVENT, EVENT, EVENT))
    assert office.desk.heard(more) == (EVENT,)
    assert office.desk.heard(office.beat(events=(), events_from=3)) == ()
    assert office.desk.heard(office.beat(events=(EVENT,), events_from=3)) == (EVENT,)


def test_the_order_to_end_is_repeated_until_the_actors_have_ended(office: Office) -> None:
    desk = office.desk
    office.publish()
    desk.end = EndNode("enough", 1.0)
    beat = office.beat(known=office.placement.plan.version)
    desk.heard(beat)
    assert desk.has_news_for(beat)
    reply = desk.reply(beat, office.now)
    assert reply.end == desk.end
    assert reply.lease > 0  # its actors finish what they have accepted

    ended = office.beat(known=beat.known, ended={"shard-1": "killed"})
    desk.heard(ended)
    assert not desk.has_news_for(ended)
    assert desk.reply(ended, office.now).end is None
    assert desk.ended == {"b": {"shard-1": "killed"}}

    desk.leave = "remove"
    assert desk.has_news_for(ended)
    reply = desk.reply(ended, office.now)
    assert (reply.lease, reply.leave) == (0.0, "remove")
    assert desk.left == {"b"}


def test_a_query_is_news_until_all_nodes_have_answered_it(office: Office) -> None:
    office.publish()
    version = office.placement.plan.version
    query = office.desk.begin_query()
    for node in "bc":
        assert not office.desk.have_answered("bc", query)
        office.desk.heard(office.beat(node, known=version))
        assert office.desk.has_news_for(office.beat(node, known=version))
        assert office.desk.reply(office.beat(node, known=version), 0.0).asks == query
        asked = office.beat(node, known=version, asked=query)
        assert not office.desk.has_news_for(asked)
        office.desk.heard(office.beat(node, known=version, asked=query, answered=query))
    assert office.desk.have_answered("bc", query)
