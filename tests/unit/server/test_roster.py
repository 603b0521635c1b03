"""Who introduces itself by another's name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from protocol import PROTOCOL_VERSION, wire
from protocol.plan_sections import Cohort
from server.clock import SystemClock
from server.roster import DETAIL, Roster, call_roll, without_unnamed
from simulations.grid import FIRST_NODE, InProcessGrid

BASE = "b" * 64


def saying(names: list[str]) -> ClientApp:
    """The node of partition i says it is ``names[i]``."""
    made = ClientApp()

    @made.query("hello")
    def hello(message: Message, context: Context) -> Message:
        said = names[int(context.node_config["partition-id"])]
        reply = wire.Hello(client=said, base=BASE, protocol=PROTOCOL_VERSION)
        content = RecordDict({wire.REPLY: ConfigRecord(wire.to_record(reply))})
        return Message(content, reply_to=message)

    return made


class Enrolled(InProcessGrid):
    """Its nodes were enrolled under names, as the SuperLink has them from the signed roster."""

    def __init__(self, app: ClientApp, names: list[str]) -> None:
        super().__init__(app, len(names))
        self._names = names

    def get_nodes(self) -> Iterable[Any]:
        return [NodeInfo(node_id=FIRST_NODE + i, name=name) for i, name in enumerate(self._names)]


def test_a_site_cannot_call_itself_by_anothers_name() -> None:
    """Else it would keep the other out of every round: two nodes, one name."""
    said = ["ward-1", "ward-2", "ward-1"]
    grid = Enrolled(saying(said), ["ward-1", "ward-2", "ward-3"])
    roster = call_roll(grid, SystemClock(), base=BASE)
    assert roster.nodes == {"ward-1": FIRST_NODE, "ward-2": FIRST_NODE + 1}
    assert roster.kept_out == {
        f"node {FIRST_NODE + 2}": "calls itself ward-1, and is enrolled as ward-3"
    }


def test_where_nobody_was_enrolled_its_word_is_taken() -> None:
    said = ["ward-1", "ward-2", "ward-1"]
    roster = call_roll(InProcessGrid(saying(said), 3), SystemClock(), base=BASE)
    assert roster.nodes == {"ward-2": FIRST_NODE + 1}
    assert roster.kept_out == {"ward-1": "two nodes have this name"}


def test_a_nodes_own_words_are_cut() -> None:
    """Why a node was kept out stands in the record of every round."""
    made = ClientApp()

    @made.query("hello")
    def hello(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"]:
            return Message(Error(code=2, reason="x\n" * 10**6), reply_to=message)
        refusal = wire.Refusal(kind="plan", cause="y" * 10**6, remedy="")
        content = RecordDict({wire.REPLY: ConfigRecord(wire.to_record(refusal))})
        return Message(content, reply_to=message)

    kept_out = call_roll(InProcessGrid(made, 2), SystemClock(), base=BASE).kept_out
    assert len(kept_out) == 2
    assert all(0 < len(why) <= DETAIL and "\n" not in why for why in kept_out.values())


def test_a_cluster_is_told_of_its_own_alone() -> None:
    """Why a site of another cluster was kept out is no part of this run's records."""
    out = {"bo": "holds another base", "ward-2": "two nodes have this name", "node 7": "failed"}
    roster = Roster(nodes={"ann": 1, "ward-3": 2}, kept_out=out)
    assert without_unnamed(roster, Cohort()) == roster
    cluster = without_unnamed(roster, Cohort(size=2, quorum=2, clients=["ann", "bo"]))
    assert cluster.nodes == {"ann": 1}
    assert cluster.kept_out == {"bo": "holds another base", "node 7": "failed"}
