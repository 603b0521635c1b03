"""Ask many clients one thing and take what comes until the deadline. (P-4.5)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.clock import Clock
from server.roster import POLL_S, push

Take = Callable[[str, Message], None]
Enough = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Who answered too late; and whose answers, by client, nobody waited for: their messages."""

    late: frozenset[str] = frozenset()
    unawaited: Mapping[str, str]


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
    sent = push(grid, clients, lambda one: Message(contents[one], nodes[one], kind, group_id=group))
    asked = {name: one for one, name in zip(clients, sent, strict=True) if name is not None}
    return asked, [one for one, name in zip(clients, sent, strict=True) if name is None]


def gather(
    grid: Grid,
    clock: Clock,
    asked: dict[str, str],
    *,
    deadline: float,
    take: Take,
    enough: Enough = lambda: False,
) -> Missing:
    """Give every reply that comes by ``deadline``, and until it is ``enough``, to ``take``.

    Replies that come together are all taken: a client that has answered is not turned away.
    """
    waiting, late = dict(asked), set()
    while waiting and clock.now() < deadline:
        if enough():
            return Missing(unawaited={client: name for name, client in waiting.items()})
        replies = list(grid.pull_messages(waiting.keys()))  # no copy: one for each reply adds up
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
    return Missing(late=frozenset(late), unawaited={})
