"""What this client remembers of coordinators' logs: receipts, and what it was shown. (P-8.9, P-8.10)

One file beside its key, only ever appended to. With it a client notices a log that shrank, forked, or
left its vector out, whatever was restarted in between; and it holds the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from client.journal import Journal
from protocol.documents import OddError, json_as
from protocol.errors import ProofError, SecrecyError
from protocol.secagg.openings import Opening
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Count, Leaf, Sha256
from protocol.transparency.note import Checkpoint, parse_checkpoint, parse_key
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.receipts import Receipt, unverified_receipt
from protocol.transparency.shown import (
    STOP,
    Given,
    Incoming,
    Known,
    Place,
    Shown,
    Told,
    verify_given,
    verify_shown,
)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sid: str
    key: str


class _ReceiptLine(_Line):
    kind: Literal["receipt"] = "receipt"
    seq: Count
    receipt: str


class _LogLine(_Line):
    kind: Literal["log"] = "log"
    checkpoint: str
    # What accounts for each receipt since the line before, by its rid: numbers may come twice.
    proofs: dict[Sha256, str]
    # Sums of the run so far that shares were given for in vain, with their rounds; an earlier fedge has none.
    vain: dict[Sha256, Count] | None = None


_LINE: TypeAdapter[_ReceiptLine | _LogLine] = TypeAdapter(
    Annotated[_ReceiptLine | _LogLine, Field(discriminator="kind")]
)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A receipt, the verifier key it was taken under, and the proof of what became of it."""

    receipt: Receipt
    text: str
    key: str
    proof: str | None


class Receipts:
    """The file at ``path``. Raises MachineError when it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, "the memory of receipts and logs")

    def held(self) -> list[Held]:
        """All receipts, oldest first."""
        lines: dict[str, tuple[_ReceiptLine, Receipt]] = {}
        proofs: dict[str, str] = {}
        for line in self._lines():
            if isinstance(line, _ReceiptLine):
                receipt = self._receipt(line)
                lines[receipt.rid] = line, receipt
            else:
                proofs |= line.proofs
        return [
            Held(receipt=receipt, text=line.receipt, key=line.key, proof=proofs.get(rid))
            for rid, (line, receipt) in lines.items()
        ]

    def in_vain(self, sid: bytes) -> dict[str, int]:
        """The rids of the sums of run ``sid`` that the log accounts for by an `abort`, with their rounds.

        Of those that this client gave shares for, all.
        """
        last = self._latest(sid.hex())[1]
        return {} if last is None else self._vain(last)

    def _vain(self, last: _LogLine) -> dict[str, int]:
        if last.vain is not None:
            return last.vain
        held = [each for each in self.held() if each.receipt.sid == last.sid and each.proof]
        return {
            each.receipt.rid: each.receipt.round
            for each in held
            if isinstance(_proven_leaf(each.proof or ""), Abort)
        }

    def told(self, sid: bytes) -> Told:
        """What the coordinator of run ``sid`` has to know of this memory."""
        return self._known(sid.hex()).told

    def keep_receipt(self, given: Given, expected: Receipt, place: Place) -> None:
        """Check a receipt and keep it. Raises SecrecyError."""

        def made() -> str:
            verify_given(given, self._known(expected.sid), place, expected)
            return _ReceiptLine(
                sid=expected.sid, key=given.key, seq=expected.seq, receipt=given.receipt
            ).model_dump_json()

        self._journal.append_made(made)

    def keep_log(
        self,
        sid: bytes,
        shown: Shown,
        place: Place,
        incoming: Incoming,
        openings: Callable[[Collection[str]], Sequence[Opening]],
    ) -> None:
        """Check what was shown of the log against what is known, and keep it. Raises SecrecyError.

        ``openings`` gives those of the sums with these rids that the client gave its shares for.
        """

        def made() -> str:
            known, last = self._known(sid.hex()), self._latest(sid.hex())[1]
            found = openings([receipt.rid for receipt in known.open])
            opened = {opening.rid.hex(): opening.alive for opening in found}
            seen = verify_shown(shown, replace(known, opened=opened), place, incoming)
            vain = {
                receipt.rid: receipt.round
                for receipt in known.open
                if receipt.rid in opened
                and isinstance(_proven_leaf(seen.accounts[receipt.rid]), Abort)
            }
            return _LogLine(
                sid=sid.hex(),
                key=shown.key,
                checkpoint=shown.checkpoint,
                proofs=dict(seen.accounts),
                vain=({} if last is None else self._vain(last)) | vain,
            ).model_dump_json()

        self._journal.append_made(made)

    def while_open(self, sid: bytes, rid: bytes, note: Callable[[], None]) -> None:
        """``note`` that shares will be given for ``rid``, unless the log has accounted for it already.

        Another session of this site may look at the log at the same time: what it accepts there either
        tells of this reveal, or comes first, and then there is none. Raises SecrecyError ``attempt.ended``.
        """
        with self._journal.alone():
            if rid.hex() not in {receipt.rid for receipt in self._known(sid.hex()).open}:
                raise SecrecyError(
                    "attempt.ended", "the log says how it ended, or has no receipt", STOP
                )
            note()

    def _known(self, sid: str) -> Known:
        receipts, last = self._latest(sid)
        if last is None:  # a receipt comes after the log was shown
            return Known()
        checkpoint = self._checkpoint(last)
        waiting = {one.rid: one for one in receipts if one.rid not in last.proofs}
        return Known(
            key=last.key,
            size=checkpoint.size,
            root=checkpoint.root,
            open=tuple(waiting.values()),
        )

    def _latest(self, sid: str) -> tuple[list[Receipt], _LogLine | None]:
        """The last that was shown of the run's log, and the receipts since: it accounts for all before it."""
        receipts: list[Receipt] = []
        for text in self._journal.backwards():
            line = self._parsed(text)
            if line.sid != sid:
                continue
            if isinstance(line, _LogLine):
                return receipts[::-1], line
            receipts.append(self._receipt(line))
        return receipts[::-1], None

    def _lines(self) -> Iterator[_ReceiptLine | _LogLine]:
        return map(self._parsed, self._journal.text().splitlines())

    def _parsed(self, text: str) -> _ReceiptLine | _LogLine:
        try:
            return json_as(_LINE, text)
        except OddError as error:
            # Fail closed, as for opened sums: a line that a power cut tore was never answered.
            raise self._journal.unusable("read", error) from None

    def _receipt(self, line: _ReceiptLine) -> Receipt:
        try:
            return unverified_receipt(line.receipt)
        except ProofError as error:
            raise self._journal.unusable("read", error) from None

    def _checkpoint(self, line: _LogLine) -> Checkpoint:
        text = line.checkpoint.rpartition("\n\n")[0] + "\n"
        try:
            return parse_checkpoint(text, origin=parse_key(line.key).name)
        except ProofError as error:
            raise self._journal.unusable("read", error) from None


def _proven_leaf(proof: str) -> Leaf:
    return decode_leaf(parse_offline_proof(proof).extra or b"").leaf
