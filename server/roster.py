"""Who is there: nodes introduce themselves by name. (P-4.1)

Flower's node ids are random; names are what cohorts, records and seeds are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from protocol import PROTOCOL_VERSION, wire
from protocol.errors import ArtefactError
from protocol.plan_sections import Cohort
from protocol.section import NAME_BYTES, is_client_name
from server.clock import Clock

PATIENCE_S = 60.0  # for the answers of nodes that are connected
POLL_S = 0.2
DETAIL = 500  # characters of somebody else's text that a record keeps
NODE = "node "  # and its number: one whose name is not known


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Names that may take part, with their nodes; and who was kept out, and why."""

    nodes: dict[str, int]
    kept_out: dict[str, str]


def call_roll(grid: Grid, clock: Clock, *, base: str) -> Roster:
    """Ask every connected node for its name, base and version.

    A node that was enrolled under a name (:mod:`server.link`) answers with that one, or is kept out.
    """
    enrolled = {node.node_id: node.name for node in grid.get_nodes()}
    node_ids = sorted(enrolled)
    question = RecordDict()
    messages = [Message(question, node, wire.HELLO) for node in node_ids]
    sent = push(grid, messages)
    node_of = {asked: node for asked, node in zip(sent, node_ids, strict=True) if asked is not None}
    unsent = [node for asked, node in zip(sent, node_ids, strict=True) if asked is None]
    answers: dict[int, wire.Hello | str] = {}
    deadline = clock.now() + PATIENCE_S
    waiting = dict.fromkeys(node_of)
    while waiting and clock.now() < deadline:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            asked = reply.metadata.reply_to_message_id
            if asked in waiting:
                del waiting[asked]
                node = node_of[asked]
                answers[node] = _hello(reply, enrolled[node])
        if not replies:
            clock.sleep(POLL_S)
    return _sorted_out(answers, unsent + [node_of[asked] for asked in waiting], base)


def without_unnamed(roster: Roster, cohort: Cohort) -> Roster:
    """``roster`` of those whom the plan names; who else is there is no concern of the run's. (P-4.1)

    Nodes that were kept out before they said their name may be anybody's, and stay.
    """
    nodes = {name: node for name, node in roster.nodes.items() if cohort.takes(name)}
    kept_out = {
        name: why
        for name, why in roster.kept_out.items()
        if cohort.takes(name) or name.startswith(NODE)
    }
    return Roster(nodes=nodes, kept_out=kept_out)


def push(grid: Grid, messages: list[Message]) -> list[str | None]:
    """Push; one id per message, None for one that could not be sent.

    Flower's HTTP grid marks single failures by None and answers a refused request as a whole
    (payload too large) with an empty list.
    """
    ids: list[str | None] = [name or None for name in grid.push_messages(messages)]
    return ids if len(ids) == len(messages) else [None] * len(messages)


def _hello(reply: Message, enrolled: str) -> wire.Hello | str:
    if reply.has_error():
        return f"failed: {reply.error.reason}"
    try:
        answer = dict(reply.content.config_records[wire.REPLY])
        if "cause" in answer:
            return f"refused: {wire.from_record(wire.Refusal, answer).cause}"
        hello = wire.from_record(wire.Hello, answer)
    except (KeyError, ArtefactError):
        return "answered with something else than its name"
    if not is_client_name(hello.client):
        return f"its name is empty, not printable or longer than {NAME_BYTES} bytes"
    if enrolled and hello.client != enrolled:
        return f"calls itself {hello.client}, and is enrolled as {enrolled}"
    return hello


def _sorted_out(answers: dict[int, wire.Hello | str], silent: list[int], base: str) -> Roster:
    nodes: dict[str, int] = {}
    kept_out = {f"{NODE}{node}": "did not say its name" for node in silent}
    twice: set[str] = set()
    for node, answer in sorted(answers.items()):
        if isinstance(answer, str):
            kept_out[f"{NODE}{node}"] = " ".join(answer.split())[:DETAIL]
        elif answer.protocol != PROTOCOL_VERSION:
            kept_out[answer.client] = f"speaks protocol version {answer.protocol}"
        elif answer.base != base:
            kept_out[answer.client] = f"holds another base ({answer.base[:12]}…)"
        elif answer.client in nodes:
            twice.add(answer.client)
        else:
            nodes[answer.client] = node
    for name in twice:  # nobody knows which of them is meant: neither takes part
        del nodes[name]
        kept_out[name] = "two nodes have this name"
    return Roster(nodes=nodes, kept_out=kept_out)
