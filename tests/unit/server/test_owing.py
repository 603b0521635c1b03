"""Who still works for a round that closed without it."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol.wire import INSTRUCTION
from server.owing import Debt, Owing
from simulations.clients import client_name
from simulations.clock import VirtualClock
from simulations.faults import Speeds
from simulations.grid import InProcessGrid

NODES = {"ann": 1000, "bo": 1001}


def asked() -> tuple[InProcessGrid, VirtualClock, Owing]:
    """Bo needs ten seconds, Ann one; the round is over after thirty."""
    app, clock = ClientApp(), VirtualClock()

    @app.train("mask")
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    speeds = Speeds(training_s=1.0, slowness=10.0, slow=frozenset({client_name(1)}))
    grid = InProcessGrid(app, 2, clock=clock, speeds=speeds)
    content = RecordDict({INSTRUCTION: ConfigRecord({"round": 1, "attempt": 1})})
    messages = [Message(content, node, "train.mask") for node in NODES.values()]
    owing = Owing()
    for (name, node), message in zip(NODES.items(), grid.push_messages(messages), strict=True):
        owing.add(name, Debt(node, message, 30.0))
    return grid, clock, owing


@pytest.mark.parametrize(("moment", "busy"), [(0.5, {"ann", "bo"}), (1.5, {"bo"}), (10.5, set())])
def test_a_client_is_busy_until_it_has_answered(moment: float, busy: set[str]) -> None:
    grid, clock, owing = asked()
    clock.sleep(moment)
    assert owing.busy(grid, NODES, clock.now()) == busy
    assert {*owing.debts} == busy  # what has come is thrown away


def test_a_node_that_has_gone_owes_nothing() -> None:
    grid, clock, owing = asked()
    assert owing.busy(grid, NODES | {"bo": 1007}, clock.now()) == {"ann"}
    assert owing.busy(grid, {}, clock.now()) == frozenset()


def test_nobody_is_waited_for_beyond_the_deadline_of_its_round() -> None:
    grid, _, owing = asked()
    assert owing.busy(grid, NODES, 30.0) == frozenset()
