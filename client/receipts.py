"""What this client remembers of coordinators' logs: receipts, and what it was shown. (P-8.9, P-8.10)

One file beside its key, only ever appended to. With it a client notices a log that shrank, forked, or
left its vector out, whatever was restarted in between; and it holds the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from client.journal import Journal
from protocol.documents import OddError, json_as
from protocol.errors import ProofError
from protocol.secagg.openings import Opening
from protocol.transparency.leaves import Abort, Count, decode_leaf
from protocol.transparency.note import Checkpoint, parse_checkpoint, parse_key
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.receipts import Receipt, unverified_receipt
from protocol.transparency.shown import (
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
    proofs: dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,16}$")], str
    ]  # what accounts for an earlier receipt, by the number of its attempt


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
        lines: dict[tuple[str, int], _ReceiptLine] = {}
        proofs: dict[tuple[str, int], str] = {}
        for line in self._lines():
            if isinstance(line, _ReceiptLine):
                lines[line.sid, line.seq] = line
            else:
                proofs |= {(line.sid, int(seq)): proof for seq, proof in line.proofs.items()}
        return [
            Held(
                receipt=self._receipt(line),
                text=line.receipt,
                key=line.key,
                proof=proofs.get(place),
            )
            for place, line in lines.items()
        ]

    def in_vain(self, sid: bytes) -> set[int]:
        """The attempts of run ``sid`` that the log accounts for by an `abort`."""
        proofs = {
            held.receipt.seq: parse_offline_proof(held.proof)
            for held in self.held()
            if held.proof is not None and held.receipt.sid == sid.hex()
        }
        leaves = {seq: decode_leaf(proof.extra or b"").leaf for seq, proof in proofs.items()}
        return {seq for seq, leaf in leaves.items() if isinstance(leaf, Abort)}

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
        openings: Sequence[Opening],
    ) -> None:
        """Check what was shown of the log against what is known, and keep it. Raises SecrecyError.

        ``openings`` are the sums of this run that the client gave its shares for.
        """

        def made() -> str:
            opened = {opening.seq: opening.alive for opening in openings}
            known = replace(self._known(sid.hex()), opened=opened)
            seen = verify_shown(shown, known, place, incoming)
            proofs = {str(seq): proof for seq, proof in seen.accounts.items()}
            return _LogLine(
                sid=sid.hex(), key=shown.key, checkpoint=shown.checkpoint, proofs=proofs
            ).model_dump_json()

        self._journal.append_made(made)

    def _known(self, sid: str) -> Known:
        lines = [line for line in self._lines() if line.sid == sid]
        waiting = {line.seq: line for line in lines if isinstance(line, _ReceiptLine)}
        shown = [line for line in lines if isinstance(line, _LogLine)]
        for line in shown:
            for seq in line.proofs:
                waiting.pop(int(seq), None)
        if not shown:  # a receipt comes after the log was shown
            return Known()
        last = self._checkpoint(shown[-1])
        return Known(
            key=shown[0].key,
            size=last.size,
            root=last.root,
            open=tuple(self._receipt(line) for line in waiting.values()),
        )

    def _lines(self) -> Iterator[_ReceiptLine | _LogLine]:
        for line in self._journal.text().splitlines():
            try:
                yield json_as(_LINE, line)
            except OddError as error:
                # Fail closed, as for opened rounds: a line that a power cut tore was never answered.
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
