"""Central noise over more clients than a leaf of the log can name."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol import PROTOCOL_VERSION, wire
from protocol.errors import PrivacyError
from server.coordinator import run_rounds
from server.store import RunStore
from simulations.clock import VirtualClock
from simulations.grid import InProcessGrid
from tests.unit.audit.runs import small_plan

COUNT = 800  # of the longest names


def test_a_sample_that_no_leaf_can_name_is_not_asked(tmp_path: Path) -> None:
    noise = {"mechanism": "central", "noise_multiplier": 1.0, "sampling": 1.0, "epsilon": 1000.0}
    plan, manifest = small_plan(
        secrecy={"exchange": "plain"}, privacy=noise, cohort={"size": COUNT, "quorum": 1}
    )
    app = ClientApp()  # answers `hello` alone: whoever is asked to train is dropped

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        name = f"{int(context.node_config['partition-id']):064d}"
        said = wire.Hello(client=name, base=manifest.fingerprint, protocol=PROTOCOL_VERSION)
        content = {wire.REPLY: ConfigRecord(wire.to_record(said))}
        return Message(RecordDict(content), reply_to=message)

    causes = []
    for _ in range(2):  # and again where it is resumed
        clock, store = VirtualClock(), RunStore(tmp_path / "run")
        try:
            with pytest.raises(PrivacyError) as refusal:
                run_rounds(
                    plan=plan,
                    manifest=manifest,
                    grid=InProcessGrid(app, COUNT, clock=clock, deadline_s=30.0),
                    store=store,
                    clock=clock,
                )
            assert store.ledger.tally.count == 0
            assert store.last_round() == 0
        finally:
            store.close()
        causes.append(refusal.value.cause)
        assert "privacy.sampling" in refusal.value.remedy
    assert causes == [causes[0]] * 2
    assert f"the {COUNT} clients that were drawn" in causes[0]
