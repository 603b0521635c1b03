"""What clients get of the log beside an attempt's messages: proofs and receipts. (P-8.9, P-8.10)"""

from __future__ import annotations

from collections.abc import Iterator

from flwr.app import ConfigRecord, RecordDict

from protocol import wire
from protocol.exchange import Phase
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Adapter, Alive, Leaf, Vector
from protocol.transparency.receipts import Receipt
from protocol.transparency.shown import (
    Given,
    Proven,
    Tail,
    Told,
    decode_text,
    encode_shown,
    nodes_text,
)
from server.log import RunLog
from server.secret_sum import SecretSum
from server.setting import Setting
from server.store import Number


class ClientsLog:
    """The log as one attempt's clients are shown it."""

    def __init__(self, setting: Setting, number: Number, sid: bytes) -> None:
        self._log, self._told = setting.log, setting.told
        self._number, self._sid = number, sid
        self._late = setting.plan.cohort.late_rounds > 0
        # The first message after the masked vector.
        self._receipted = Phase.UNMASK if setting.plan.witnessed else Phase.AGREE
        self._found: _Found | None = None
        self._tail = ""  # as a text, of megabytes where attempts failed under witnesses

    def heard(self, phase: Phase, one: bytes, content: RecordDict) -> None:
        """Note what a client's reply tells of its memory. Raises KeyError, ArtefactError or SecrecyError."""
        if phase in (Phase.ADVERTISE, Phase.UNMASK):
            record = dict(content.config_records[wire.LOG])
            text = wire.from_record(wire.LogText, record).text
            self._told[one] = decode_text(Told, text, "log")

    def beside(self, phase: Phase, made: SecretSum, one: bytes) -> dict[str, ConfigRecord]:
        """The record that goes with the phase's message to a client; none in most phases."""
        if phase is Phase.SHARE:
            text = self._shown(one)
        elif phase is self._receipted:
            text = self._given(made, one).encode()
        else:
            return {}
        return {wire.LOG: ConfigRecord(wire.to_record(wire.LogText(text=text)))}

    def _given(self, made: SecretSum, one: bytes) -> Given:
        receipt = Receipt(
            origin=self._log.origin,
            client=one.hex(),
            sid=self._sid.hex(),
            seq=self._number.seq,
            rid=made.core.rid.hex(),
            root=made.core.vectors_signed[one][0].hex(),
            round=self._number.round,
            attempt=self._number.attempt,
        )
        return Given(key=self._log.verifier.encode(), receipt=self._log.receipt(receipt))

    def _shown(self, one: bytes) -> str:
        log, told = self._log, self._told.get(one, Told(size=0, open=[]))
        known = told.size if told.size <= log.size else log.size  # it will not like what it gets
        if self._found is None:  # nothing is logged while shares are asked for
            self._found = _Found(log, late=self._late)
            self._tail = self._last_leaves().encode()
        return encode_shown(
            key=log.verifier.encode(),
            checkpoint=log.note,
            consistency=nodes_text(log.tree.consistency(known)),
            tail=self._tail,
            proven=[self._proven(at) for at in self._found.of(one, told)],
        )

    def _last_leaves(self) -> Tail:
        """From the last `adapter` on: it stands at the end, unless attempts have failed since."""
        start = self._log.last(Adapter)
        assert start is not None  # round 0's came before anybody was asked
        return Tail(
            start=start,
            peaks=nodes_text(self._log.tree.peaks(start)),
            leaves=[self._log.entry(at).decode() for at in range(start, self._log.size)],
        )

    def _proven(self, index: int) -> Proven:
        path = nodes_text(self._log.tree.inclusion(index))
        return Proven(index=index, path=path, leaf=self._log.entry(index).decode())


class _Found:
    """Where the log holds vectors and ends of attempts; a leaf is read once, where it is asked for.

    The last `adapter` is not among the ends: everybody is shown it.
    """

    def __init__(self, log: RunLog, *, late: bool) -> None:
        self._log, self._since, self._late = log, log.size, late
        self._vectors: dict[str, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        self._alive: dict[int, list[int]] = {}  # who is in sums, where clients keep updates

    def _read_from(self, since: int) -> None:
        """What lies from leaf ``since`` on: who comes back after a hundred rounds waits for old leaves."""
        log, stop, last = self._log, self._since, self._log.last(Adapter)
        for at in _between(log, Vector, since, stop):
            leaf = decode_leaf(log.entry(at)).leaf
            assert isinstance(leaf, Vector)
            self._vectors.setdefault(leaf.client, []).append(at)
        for at in sorted(
            (*_between(log, Abort, since, stop), *_between(log, Adapter, since, stop))
        ):
            end = decode_leaf(log.entry(at)).leaf
            assert isinstance(end, Abort | Adapter)
            if at != last:
                self._ends.setdefault(end.seq, []).append(at)
        if self._late:
            for at in _between(log, Alive, since, stop):
                leaf = decode_leaf(log.entry(at)).leaf
                assert isinstance(leaf, Alive)
                self._alive.setdefault(leaf.seq, []).append(at)
        self._since = min(since, stop)

    def of(self, one: bytes, told: Told) -> Iterator[int]:
        """What accounts for the attempts that a client waits for."""
        if told.open:
            if told.size < self._since:
                self._read_from(told.size)
            vectors = self._vectors.get(one.hex(), [])
            yield from sorted(at for at in vectors if at >= told.size)
        for seq in told.open:
            yield from sorted((*self._alive.get(seq, []), *self._ends.get(seq, [])))


def _between(log: RunLog, kind: type[Leaf], since: int, stop: int) -> Iterator[int]:
    return (at for at in log.find(kind, since=since) if at < stop)
