"""Ask many clients one thing each and take what comes until the deadline, or until it is enough. (P-4.5)

Requests are made and sent, and replies fetched, a batch at a time: those of thousands of clients would not
fit into memory together. What a batch is answered with at once is taken before the next is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from server.clock import Clock
from server.roster import POLL_S, push

BATCH = 64  # requests that are there at once, and replies that are fetched at once
BATCH_BYTES = 2**25  # of a batch's contents, before its last; what several share counts once
Take = Callable[[str, Message], None]
Enough = Callable[[], bool]
Content = tuple[str, RecordDict]  # of a client's request


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """Who answered too late; and whose answers, by client, nobody waited for: their messages.

    ``deadline``: when time would have been up.
    """

    late: frozenset[str] = frozenset()
    unawaited: Mapping[str, str]
    deadline: float


def ask(
    grid: Grid,
    clock: Clock,
    contents: Iterable[Content],
    *,
    nodes: Mapping[str, int],
    kind: str,
    group: str,
    seconds: float,
    take: Take,
    unsent: Callable[[str], None],
    since: float | None = None,
    enough: Enough = lambda: False,
) -> Missing:
    """Send each client its content, give every reply that comes in time, until it is ``enough``, to ``take``.

    ``contents`` are made when their turn comes; ``unsent`` is told of a client whose request could not be
    sent. Time is up ``seconds`` after the last request was sent, or after ``since``. Replies that have come
    when it is enough are all taken: a client that has answered is not turned away.
    """
    replies = _Replies(grid, clock, take, enough)
    end = (clock.now() if since is None else since) + seconds
    for batch in _batches(contents):
        asked: dict[str, str] = {}
        for client, name in _sent(grid, batch, nodes=nodes, kind=kind, group=group):
            if name is None:
                unsent(client)
            else:
                asked[name] = client
        end = (clock.now() if since is None else since) + seconds
        replies.waiting |= asked
        if not enough():
            replies.take_of(list(asked), end)
    while replies.waiting and clock.now() < end:
        if enough():
            unawaited = {client: name for name, client in replies.waiting.items()}
            return Missing(late=frozenset(replies.late), unawaited=unawaited, deadline=end)
        if not replies.take(end):
            clock.sleep(POLL_S)
    replies.look_once_more()
    return Missing(late=frozenset(replies.late), unawaited={}, deadline=end)


def slices(ids: Iterable[str]) -> Iterator[list[str]]:
    """Ids of requests, as many at a time as replies are fetched."""
    names = list(ids)
    return (names[at : at + BATCH] for at in range(0, len(names), BATCH))


class _Replies:
    """``waiting``: clients by the id of their request. ``late``: who answered after the deadline."""

    def __init__(self, grid: Grid, clock: Clock, take: Take, enough: Enough) -> None:
        self._grid, self._clock, self._take, self._enough = grid, clock, take, enough
        self.waiting: dict[str, str] = {}
        self.late: set[str] = set()

    def take(self, end: float) -> bool:
        """All that has come by ``end``; whether anything has."""
        before = len(self.waiting)
        for ids in slices(self.waiting):
            self.take_of(ids, end)
        return len(self.waiting) < before

    def take_of(self, ids: Sequence[str], end: float) -> None:
        """What these few requests were answered with by ``end``; once it is enough no more than has come."""
        while (left := [name for name in ids if name in self.waiting]) and self._clock.now() < end:
            replies = list(self._grid.pull_messages(left))
            for reply in replies:
                client = self.waiting.pop(reply.metadata.reply_to_message_id, None)
                if client is None:
                    continue
                if self._clock.now() >= end:
                    self.late.add(client)
                else:
                    self._take(client, reply)
            if not replies or self._enough():
                return

    def look_once_more(self) -> None:
        """Who answers now is late, and is not read."""
        for ids in slices(self.waiting):
            for reply in self._grid.pull_messages(ids):
                if client := self.waiting.get(reply.metadata.reply_to_message_id):
                    self.late.add(client)


def _sent(
    grid: Grid, batch: list[Content], *, nodes: Mapping[str, int], kind: str, group: str
) -> list[tuple[str, str | None]]:
    """Clients with the ids of their requests, None for one that could not be sent; empties ``batch``."""
    clients = [client for client, _ in batch]
    messages = [Message(content, nodes[client], kind, group_id=group) for client, content in batch]
    batch.clear()
    return list(zip(clients, push(grid, messages), strict=True))


def _batches(contents: Iterable[Content]) -> Iterator[list[Content]]:
    """In their order; what was sent is not kept."""
    batch: list[Content] = []
    sizes: dict[int, int] = {}
    for client, content in contents:
        if not batch or content is not batch[-1][1]:
            sizes |= _sizes(content)
        batch.append((client, content))
        del content
        if len(batch) == BATCH or sum(sizes.values()) > BATCH_BYTES:
            yield batch
            batch, sizes = [], {}
    if batch:
        yield batch


def _sizes(content: RecordDict) -> dict[int, int]:
    """Bytes of its arrays and texts, by identity."""
    parts: list[bytes | str] = [
        array.data for record in content.array_records.values() for array in record.values()
    ]
    for record in content.config_records.values():
        parts += [value for value in record.values() if isinstance(value, str)]
    return {id(part): len(part) for part in parts}
