"""Ask many clients one thing and take what comes until the deadline. (P-4.5)"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.clock import Clock
from server.roster import POLL_S, push

Take = Callable[[str, Message], None]


def ask(
    grid: Grid,
    contents: Mapping[str, RecordDict],
    *,
    nodes: Mapping[str, int],
    kind: str,
    group: str,
) -> tuple[dict[str, str], list[str]]:
    """Push one message per client; (message ids with clients, clients it could not be sent to)."""
    clients = list(contents)
    messages = [Message(contents[one], nodes[one], kind, group_id=group) for one in clients]
    sent = push(grid, messages)
    asked = {name: one for one, name in zip(clients, sent, strict=True) if name is not None}
    return asked, [one for one, name in zip(clients, sent, strict=True) if name is None]


def gather(
    grid: Grid, clock: Clock, asked: dict[str, str], *, deadline: float, take: Take
) -> frozenset[str]:
    """Give every reply that comes by ``deadline`` to ``take``; returns who answered too late."""
    waiting, late = dict(asked), set()
    while waiting and clock.now() < deadline:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            client = waiting.pop(reply.metadata.reply_to_message_id, None)
            if client is None:
                continue
            if clock.now() >= deadline:
                late.add(client)
            else:
                take(client, reply)
        if not replies:
            clock.sleep(POLL_S)
    if waiting:  # one last look: who answers now is late, and is not read
        for reply in grid.pull_messages(list(waiting)):
            if answered := waiting.get(reply.metadata.reply_to_message_id):
                late.add(answered)
    return frozenset(late)
