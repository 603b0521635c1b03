"""Every decoder of what others have written, by module and name, with documents that it accepts.

``REGISTRY`` is filled from one small run, made for real. ``ELSEWHERE`` names readers that have no
document of a stranger's of their own, and says why.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, parse_batch, parse_kept, read_log
from audit.order import parse_first
from audit.releases import read_edge_adapter
from audit.sources import Folder
from audit.verify import audit
from base_model import source_files
from client import frames
from client.data import task_rows
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.sessions import FileSession
from edge_runtime.adapter import read_note, read_tensors
from edge_runtime.base import read_manifest
from edge_runtime.passport import read_policy, verify_passport
from edge_runtime.probe import Golden, Probe, read_probe
from edge_runtime.settings import read_device
from edge_runtime.store import State, read_state
from fedge.evidence import verify_evidence
from fedge.gate import read_audit
from fedge.operations.certificates import make_authority
from fedge.operations.coordinator import CoordinatorSettings
from fedge.operations.folders import Invitation, read_settings
from fedge.operations.overview import read_outcome
from fedge.operations.site import SiteSettings, read_invitation
from protocol.adapter import adapter_layout
from protocol.chunks import CHUNKS, chunks_of, parse_chunks
from protocol.delivery import (
    GATE,
    Current,
    DeviceReport,
    Facts,
    File,
    Files,
    Offer,
    decode,
    encode,
)
from protocol.documents import OddError, parse_json, parse_toml
from protocol.encoding import canonical_json, parse_canonical
from protocol.enrolment import (
    Site,
    make_request,
    node_key_bytes,
    sign_roster,
    verify_request,
    verify_roster,
)
from protocol.errors import ArtefactError, ProofError
from protocol.exchange import METRICS, Contribution
from protocol.exchange.plain import PlainClient
from protocol.exchange.plain import decode as decode_plain
from protocol.manifest import FileEntry, parse_manifest
from protocol.merkle import leaf_hash
from protocol.peft_format import PASSPORT_FILE, RELEASE_FILE, ReleaseNote, parse_release
from protocol.plan import parse_plan, plan_from_text
from protocol.privacy.ledger import parse_entries
from protocol.secagg.agreement import Keys
from protocol.secagg.messages import (
    decode_advert,
    decode_cohort,
    decode_ids,
    decode_masked_tail,
    decode_reveals,
    decode_round,
    decode_signatures,
    split_unmask,
)
from protocol.secagg.roster import parse_roster
from protocol.secagg.session import Session
from protocol.step.checkpoint import decode_checkpoint
from protocol.tensor_file import decode_tensors
from protocol.transparency.dsse import (
    PAYLOAD_TYPE,
    key_id,
    pae,
    parse_envelope,
    sign_statement,
    verify_envelope,
)
from protocol.transparency.leaves import decode_leaf, sign_complaint, verify_author
from protocol.transparency.note import (
    KeyType,
    VerifierKey,
    cosign,
    lines_naming,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.offline import OfflineProof, parse_offline_proof
from protocol.transparency.policy import parse_policy, policy_of
from protocol.transparency.receipts import Receipt, sign_receipt, unverified_receipt, verify_receipt
from protocol.transparency.shown import Given, Proven, Shown, Tail, Told, decode_text, nodes_text
from protocol.transparency.tiles import parse_entries as parse_tile
from protocol.transparency.tree import Tree
from protocol.transparency.witness import AddCheckpoint, parse_add_checkpoint
from protocol.wire import Hello, Instruction, LogText, Refusal, from_record, to_record
from server.delivery.status import read_reports
from server.history import HISTORY, read_history
from simulations.experiment import experiment_path, load_experiment
from tests.properties.odd_rows import parquet
from tests.unit.audit.runs import make_run

Read = Callable[[bytes], object]
SID = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """``read`` takes a whole document; ``seeds`` are some that it accepts.

    "…, signed" in a name: a seed is what its signer would write, and ``read`` signs it.
    """

    read: Read
    seeds: tuple[bytes, ...]

    @property
    def opens(self) -> tuple[Path, Callable[[Path], object]] | None:
        """The path that it reads, and how, where it opens one."""
        return getattr(self.read, "opens", None)


ELSEWHERE = {
    "audit.attest:read_identity": "a key of this machine's own",
    "audit.commands:read_policy_file": "parse_policy",
    "audit.published:read_plan": "plan_from_text behind a digest that the log signs",
    "audit.published:read_subject": "bytes behind a digest that the log signs",
    "base_model.release:read_note": "parse_release",
    "base_model.release:read_peft": "safetensors' own reader; needs torch",
    "base_model.verify:read_manifest": "parse_manifest",
    "base_model.checkpoint:read_checkpoint": "safetensors' and torch's own readers; needs torch",
    "base_model.store:read_tensors": "safetensors' own reader; needs torch",
    "client.settings:read_identity": "a key of this machine's own",
    "fedge.gate:read_plan": "plan_from_text",
    "fedge.operations.folders:read_signing_key": "a key of this machine's own",
    "fedge.operations.site:read_node_key": "a key of this machine's own",
    "fedge.plans:read_manifest": "parse_manifest",
    "fedge.plans:read_plan": "plan_from_text",
    "fedge.rosters:read": "parse_roster",
    "protocol.regular_files:read_regular": "bytes of any file",
    "protocol.regular_files:read_regular_text": "text of any file",
    "protocol.regular_files:read_settings_text": "text of any file",
    "protocol.rows.formats:read_columns": "names of a file of one's own",
    "protocol.rows.formats:read_lines": "read_texts",
    "protocol.rows.formats:read_values": "read_rows",
    "protocol.rows.read:read_texts": "read_rows without labels",
    "server.app:read_manifest": "parse_manifest",
    "server.app:read_plan": "plan_from_text",
    "server.app:read_roster": "parse_roster",
    "server.delivery.keys:read_keys": "keys of this machine's own",
    "server.delivery.releases:read_current": "protocol.delivery:decode behind TUF's digests",
    "server.delivery.releases:read_facts": "protocol.delivery:decode behind TUF's digests",
    "fedge.metrics:read_run": "plan_from_text, server.history:read_history",
    "server.starting:read_beginning": "plan_from_text, decode_checkpoint, parse_json",
    "server.log:read_log_key": "a key of this machine's own",
}


def _text(read: Callable[[str], object]) -> Read:
    """Of a file's text; what is no UTF-8 stands as it would in text from elsewhere."""
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def _file(path: Path, read: Callable[[Path], object]) -> Read:
    def reading(data: bytes) -> object:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    reading.opens = (path, read)  # type: ignore[attr-defined]
    return reading


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _signed(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "keyid": key_id(key.public_key().public_bytes_raw()),
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
    )


def _payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def _json(data: bytes) -> Any:
    """As whoever calls a decoder of parsed values: an error of JSON's own is theirs."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArtefactError("no JSON", "") from None


def _refusing(read: Read, kind: type[ValueError] = OddError) -> Read:
    """Of a decoder whose callers turn ``kind`` into their own error, and nothing else."""

    def reading(data: bytes) -> object:
        try:
            return read(data)
        except kind as error:
            raise ArtefactError(str(error), "") from None

    return reading


def _received(data: bytes) -> object:
    """A frame with this header, through a real socket."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)  # what does not fit is longer than any header
        frame = frames.PREFIX.pack(frames.MAGIC, len(data), 0) + data
        with suppress(BlockingIOError):
            one.send(frame)
        one.shutdown(socket.SHUT_WR)
        try:
            received = frames.receive(other)
        except EOFError:
            return None
    if received is not None and isinstance(received[0], frames.Refused):
        received[0].raised()
    return received


def _toml_plan(fingerprint: str) -> bytes:
    return (
        'format = 1\nname = "small"\nseed = 5\nrounds = 2\n'
        f'[base]\nfingerprint = "{fingerprint}"\n'
        '[task]\nlabels = ["a", "b"]\n[adapter]\nrank = 2\nalpha = 4.0\ntargets = ["query"]\n'
        "[cohort]\nsize = 6\nquorum = 3\ndeadline_s = 30.0\n"
    ).encode()


REAL = (1.0).hex()
ENTRY = {
    "plan": "0" * 64,
    "run": "",
    "sequence": 1,
    "round": 1,
    "attempt": 1,
    "participants": ["a"],
    "mechanism": "distributed",
    "clip": REAL,
    "noise_multiplier": REAL,
    "honest": 3,
    "grid": REAL,
    "noise": REAL,
    "size": 5,
    "rho": REAL,
    "xi": REAL,
}


class World:
    """One small run, its keys, and documents about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes_raw()
        self.run = make_run(folder / "run", privacy={"rounds_per_client": 3})
        self.log_key = parse_key((self.run / "log/key").read_text().strip())
        self.note = (self.run / "log/checkpoint").read_text()
        self.plan = plan_from_text((self.run / "plan.json").read_text(), source="plan.json")
        self.entries = read_log(Folder(self.run), Trust()).entries

    def bytes(self, name: str) -> bytes:
        return (self.run / name).read_bytes()

    def of_paths(self) -> dict[str, tuple[Path, Callable[[Path], object]]]:
        """Those that open a path."""
        found = {name: decoder.opens for name, decoder in self.registry().items()}
        return {name: opens for name, opens in found.items() if opens is not None}

    # -- by package ---------------------------------------------------------------------------

    def registry(self) -> dict[str, Decoder]:
        return {
            **self._documents(),
            **self._log(),
            **self._messages(),
            **self._enrolment(),
            **self._delivery(),
            **self._device(),
            **self._client(),
            **self._operations(),
        }

    def _documents(self) -> dict[str, Decoder]:
        manifest, plan = self.bytes("manifest.json"), self.bytes("plan.json")
        roster = next((self.run / "rosters").iterdir()).read_bytes()
        checkpoint = self.bytes("rounds/0001/checkpoint.safetensors")
        base = self.folder / "base"
        pieces = chunks_of({"w.bin": [b"x" * 2**20, b"y"]})
        covered = {
            "w.bin": FileEntry(sha256="0" * 64, bytes=2**20 + 1),
            CHUNKS: FileEntry(sha256="0" * 64, bytes=1),
        }
        toml = _toml_plan(self.plan.base.fingerprint)
        experiment = experiment_path("demo").read_bytes()

        def used(text: str) -> object:
            """A plan is worth nothing before its digest, its policy and its layout."""
            found = plan_from_text(text, source="plan.json")
            _ = found.digest
            if found.witnessed:
                policy_of(found.audit)
            return adapter_layout(found, parse_manifest(manifest.decode(), source="m"))

        return {
            "protocol.plan:plan_from_text": Decoder(read=_text(used), seeds=(plan,)),
            "protocol.plan:parse_plan": Decoder(
                read=_text(lambda text: parse_plan(text, source="plan.toml")), seeds=(toml,)
            ),
            "simulations.experiment:load_experiment": Decoder(
                read=_file(self.folder / "x.toml", load_experiment), seeds=(experiment,)
            ),
            "protocol.manifest:parse_manifest": Decoder(
                read=_text(lambda text: parse_manifest(text, source="m")), seeds=(manifest,)
            ),
            "edge_runtime.base:read_manifest": Decoder(
                read=_file(base / "manifest.json", lambda path: read_manifest(path.parent)),
                seeds=(manifest,),
            ),
            "protocol.chunks:parse_chunks": Decoder(
                read=lambda data: parse_chunks(data, covered, source="c"),
                seeds=(pieces.to_json().encode(),),
            ),
            "protocol.secagg.roster:parse_roster": Decoder(
                read=_text(lambda text: parse_roster(text, source="r")), seeds=(roster,)
            ),
            "protocol.step.checkpoint:decode_checkpoint": Decoder(
                read=lambda data: decode_checkpoint(data, source="c"),
                seeds=(checkpoint,),
            ),
            "protocol.tensor_file:decode_tensors": Decoder(
                read=lambda data: decode_tensors(data, source="t"),
                seeds=(self.bytes("rounds/0001/adapter/adapter_model.safetensors"),),
            ),
            "protocol.privacy.ledger:parse_entries": Decoder(
                read=_text(lambda text: [e.spent for e in parse_entries(text, source="l")]),
                seeds=(_line(ENTRY) * 2,),
            ),
            "protocol.documents:parse_json": Decoder(
                read=_refusing(parse_json), seeds=(b'{"a": [1, "x", null, 1.5]}',)
            ),
            "protocol.documents:parse_toml": Decoder(read=_refusing(parse_toml), seeds=(toml,)),
            "protocol.encoding:parse_canonical": Decoder(
                read=_refusing(parse_canonical, ValueError), seeds=(b'{"a":[1,"x",null]}',)
            ),
        }

    def _log(self) -> dict[str, Decoder]:
        text = self.note.partition("\n\n")[0] + "\n"
        witness = VerifierKey(name="w.example", type=KeyType.COSIGNATURE, public=self.public)
        cosigned = self.note + cosign(text, "w.example", self.key, time=5)
        leaf = self.entries[-1]
        tree = Tree(map(leaf_hash, self.entries))
        index = len(self.entries) - 1
        proof = OfflineProof(
            index=index,
            path=tuple(tree.inclusion(index, tree.size)),
            checkpoint=self.note,
            extra=leaf,
        ).encode()
        policy = (
            f"log {self.log_key.encode()}\nwitness w {witness.encode()}\n"
            "group all 1 w\nquorum all\n"
        )
        trusted = parse_policy(f"log {self.log_key.encode()}\nquorum none\n")
        origin = self.log_key.name

        def proven(text: str) -> object:
            found = parse_offline_proof(text)
            found.verify(found.extra or b"", trusted)
            return found.encode()

        def leaf_of(data: bytes) -> object:
            read = decode_leaf(data)
            verify_author(read, self.log_key.public, self.public)
            return read

        statement = sign_statement("x", {"a": 1}, {"n": "0" * 64}, self.key)
        complaint = sign_complaint(client=bytes(16), about="late", receipt="", key=self.key)
        receipt = Receipt(
            origin=origin,
            client="0" * 32,
            sid="0" * 64,
            seq=1,
            rid="0" * 64,
            root="0" * 64,
            round=1,
            attempt=1,
        )
        signed = sign_receipt(receipt, self.key)
        told = canonical_json(Told(size=3, open=[1]).model_dump())
        given = canonical_json(Given(key=self.log_key.encode(), receipt=signed).model_dump())
        shown = canonical_json(
            Shown(
                key=self.log_key.encode(),
                checkpoint=self.note,
                consistency="",
                tail=Tail(
                    start=1,
                    peaks=nodes_text([leaf_hash(self.entries[0])]),
                    leaves=[data.decode() for data in self.entries[1:]],
                ),
                proven=[
                    Proven(
                        index=0,
                        path=nodes_text([bytes(32)]),
                        leaf=self.entries[0].decode(),
                    )
                ],
            ).model_dump()
        )
        request = AddCheckpoint(old=1, path=(bytes(32),), note=self.note).encode()
        messages = [data for data in self.entries if b'"payload"' not in data]
        return {
            "protocol.transparency.note:parse_key": Decoder(
                read=_text(parse_key), seeds=(self.log_key.encode().encode(),)
            ),
            "protocol.transparency.note:verify_note": Decoder(
                read=_text(lambda t: verify_note(t, [self.log_key, witness])),
                seeds=(self.note.encode(), cosigned.encode()),
            ),
            "protocol.transparency.note:lines_naming": Decoder(
                read=_text(lambda t: lines_naming(t, witness)), seeds=(cosigned.encode(),)
            ),
            "protocol.transparency.note:parse_checkpoint": Decoder(
                read=_text(lambda t: parse_checkpoint(t, origin=origin)), seeds=(text.encode(),)
            ),
            "audit.log_copy:parse_batch": Decoder(
                read=lambda data: parse_batch(data, "log.batch"),
                seeds=(
                    _line(
                        {
                            "start": 0,
                            "entries": [base64.b64encode(one).decode() for one in self.entries],
                            "checkpoint": self.note,
                        }
                    ),
                ),
            ),
            "audit.log_copy:parse_kept": Decoder(
                read=_text(lambda t: parse_kept(t, self.log_key)), seeds=(self.note.encode(),)
            ),
            "protocol.transparency.offline:parse_offline_proof": Decoder(
                read=_text(proven), seeds=(proof.encode(),)
            ),
            "protocol.transparency.policy:parse_policy": Decoder(
                read=_text(parse_policy), seeds=(policy.encode(),)
            ),
            "protocol.transparency.tiles:parse_entries": Decoder(
                read=parse_tile, seeds=(b"\x00\x02hi" * 2,)
            ),
            "protocol.transparency.leaves:decode_leaf": Decoder(
                read=leaf_of,
                seeds=(
                    *self.entries[:3],
                    *messages[:2],
                    canonical_json({"kind": "complaint", **complaint.model_dump()}),
                ),
            ),
            "protocol.transparency.leaves:decode_leaf, signed": Decoder(
                read=lambda data: leaf_of(_signed(data, self.key)),
                seeds=tuple(_payload(data) for data in self.entries if b'"payload"' in data),
            ),
            "protocol.transparency.dsse:parse_envelope": Decoder(
                read=lambda data: verify_envelope(parse_envelope(_json(data))[0], self.public),
                seeds=(statement,),
            ),
            "protocol.transparency.receipts:unverified_receipt": Decoder(
                read=_text(unverified_receipt), seeds=(signed.encode(),)
            ),
            "protocol.transparency.receipts:verify_receipt": Decoder(
                read=_text(lambda t: verify_receipt(t, self.public)), seeds=(signed.encode(),)
            ),
            "protocol.transparency.receipts:verify_receipt, signed": Decoder(
                read=lambda data: verify_receipt(_signed(data, self.key).decode(), self.public),
                seeds=(_payload(signed.encode()),),
            ),
            "protocol.transparency.shown:decode_text": Decoder(
                read=_text(
                    lambda t: decode_text(
                        Told if '"size"' in t else Shown if '"checkpoint"' in t else Given, t, "log"
                    )
                ),
                seeds=(told, given, shown),
            ),
            "protocol.transparency.witness:parse_add_checkpoint": Decoder(
                read=parse_add_checkpoint, seeds=(request,)
            ),
            "audit.order:parse_first": Decoder(
                read=lambda data: parse_first([data], self.log_key.public), seeds=self.entries[:1]
            ),
        }

    def _messages(self) -> dict[str, Decoder]:
        adverts = [
            bytes.fromhex(json.loads(data)["advert"])
            for data in self.entries
            if b'"kind":"advert"' in data
        ]
        advert = adverts[0]
        cohort = (6).to_bytes(2, "big") * 2 + bytes(8) + bytes(32) + b"\x00\x01" + advert
        members = b"\x00\x02" + bytes(16) + bytes(15) + b"\x01" + b"boxes"
        metrics = dict.fromkeys(METRICS, 1.0)
        plain = PlainClient().mask(
            Contribution(update=np.ones(3, np.float32), weight=1, metrics=metrics)
        )
        instruction = Instruction(
            round=1,
            attempt=1,
            plan_digest="0",
            base="0",
            adapter_digest="0",
            evaluate=True,
        )
        records = (
            instruction,
            Hello(client="a", base="b", protocol=1),
            Refusal(kind="x", cause="y", remedy="z"),
            LogText(text="t"),
        )

        def record(data: bytes) -> object:
            document = _json(data)
            if not isinstance(document, dict):
                raise ArtefactError("Flower's records are dictionaries", "")
            kind = next((type(r) for r in records if set(to_record(r)) == set(document)), Hello)
            return from_record(kind, document)

        return {
            "protocol.secagg.messages:decode_advert": Decoder(
                read=lambda data: decode_advert(data, Keys.X25519), seeds=(advert,)
            ),
            "protocol.secagg.messages:decode_cohort": Decoder(
                read=lambda data: decode_cohort(data, Keys.X25519), seeds=(cohort,)
            ),
            "protocol.secagg.messages:decode_ids": Decoder(
                read=lambda data: decode_ids(data, "x"), seeds=(bytes(15) + b"\x01",)
            ),
            "protocol.secagg.messages:decode_round": Decoder(read=decode_round, seeds=(members,)),
            "protocol.secagg.messages:decode_masked_tail": Decoder(
                read=decode_masked_tail, seeds=(bytes(32 + 4 + 64),)
            ),
            "protocol.secagg.messages:decode_signatures": Decoder(
                read=decode_signatures, seeds=(bytes(80),)
            ),
            "protocol.secagg.messages:decode_reveals": Decoder(
                read=lambda data: decode_reveals(data, 2), seeds=(bytes(66),)
            ),
            "protocol.secagg.messages:split_unmask": Decoder(
                read=lambda data: split_unmask(data, Keys.X25519), seeds=(bytes(300),)
            ),
            "protocol.exchange.plain:decode": Decoder(
                read=lambda data: decode_plain("c", data, size=3, max_weight=1), seeds=(plain,)
            ),
            "protocol.wire:from_record": Decoder(
                read=record, seeds=tuple(_line(to_record(one)) for one in records)
            ),
        }

    def _enrolment(self) -> dict[str, Decoder]:
        node = ec.generate_private_key(ec.SECP384R1())
        request = make_request("ward-1", self.key, node)
        site = Site(name="ward-1", identity=self.public, node_key=node_key_bytes(node.public_key()))
        roster = sign_roster(1, [site], self.key)

        def roster_of(data: bytes) -> object:
            return verify_roster(data, self.public, least=1, source="r").render()

        return {
            "protocol.enrolment:verify_request": Decoder(
                read=lambda data: verify_request(data, source="q"), seeds=(request,)
            ),
            "protocol.enrolment:verify_request, signed": Decoder(
                read=lambda data: verify_request(_signed(data, self.key), source="q"),
                seeds=(_payload(request),),
            ),
            "protocol.enrolment:verify_roster": Decoder(read=roster_of, seeds=(roster,)),
            "protocol.enrolment:verify_roster, signed": Decoder(
                read=lambda data: roster_of(_signed(data, self.key)), seeds=(_payload(roster),)
            ),
        }

    def _delivery(self) -> dict[str, Decoder]:
        file = File(name="home-r0001.release.json", sha256="0" * 64, length=5)
        files = Files(adapter=file, release=file, passport=file)
        offer = Offer(seq=1, rollout_permille=5, device_min=1, files=files)
        current = Current(name="home", channel="stable", releases=[offer], revoked=[])
        report = DeviceReport(
            device="d",
            name="home",
            channel="stable",
            time=1,
            understands=1,
            outcome="ok",
            refreshed=None,
            current=None,
            previous=None,
            faults=[],
        )
        facts = Facts(
            plan="p",
            round=1,
            seq=1,
            log_origin="o",
            log_index=1,
            base="0" * 64,
            graph="0" * 64,
            device_min=1,
            epsilon_milli=None,
            metrics={"accuracy": 1},
        )

        def form(data: bytes) -> object:
            kind = (
                Facts if b"log_origin" in data else DeviceReport if b"faults" in data else Current
            )
            return decode(kind, data, source="x")

        evidence = sign_statement(GATE, {"passed": True}, {"a": "0" * 64}, self.key)
        summary = audit(Folder(self.run), Trust()).to_dict()
        return {
            "protocol.delivery:decode": Decoder(
                read=form, seeds=tuple(map(encode, (current, report, facts)))
            ),
            "server.delivery.status:read_reports": Decoder(
                read=_file(self.folder / "reports/d.json", lambda path: read_reports(path.parent)),
                seeds=(encode(report),),
            ),
            "fedge.evidence:verify_evidence": Decoder(
                read=lambda data: verify_evidence(data, {"0" * 64}, [self.public]),
                seeds=(evidence,),
            ),
            "fedge.gate:read_audit": Decoder(
                read=_file(self.folder / "audit.json", read_audit), seeds=(_line(summary),)
            ),
        }

    def _device(self) -> dict[str, Decoder]:
        note = ReleaseNote(
            plan_name="p",
            plan_digest="0",
            base_fingerprint="0",
            round=1,
            adapter_digest="0",
            labels=["a", "b"],
            max_length=8,
            exchange="secagg",
            files={"adapter.onnx_adapter": "0" * 64},
            metrics={"accuracy": 0.5},
        )
        release = note.model_dump_json().encode()
        probe = Probe(
            rows=[Golden(text="x", label="a")],
            least_correct=1,
            most_latency_ms=5.0,
            most_memory_mb=5.0,
        )
        state = State(current="0" * 64, installed={}, withdrawn=["1" * 64])
        policy = f"log {self.log_key.encode()}\nquorum none\n"
        trusted = parse_policy(policy)
        adapter = self.folder / "adapter"
        passport = OfflineProof(
            index=0,
            path=tuple(Tree(map(leaf_hash, self.entries)).inclusion(0)),
            checkpoint=self.note,
            extra=self.entries[0],
        ).encode()
        settings = (
            'format = 1\nid = "d1"\nname = "home"\nrepository = "repo"\nroot = "root.json"\n'
            'trust = "policy"\nbase = "base"\nstore = "store"\nprobe = "probe.json"\n'
            "threads = 1\ndeadline_s = 300.0\n"
        )

        def passported(path: Path) -> object:
            """The seed's leaf is in the log, and no release's: that is the last check."""
            try:
                return verify_passport(path.parent, round_number=1, policy=trusted)
            except ProofError as error:
                if "not of a release" in error.cause:
                    return None
                raise

        return {
            "protocol.peft_format:parse_release": Decoder(
                read=_text(lambda t: parse_release(t, source="r")), seeds=(release,)
            ),
            "edge_runtime.adapter:read_note": Decoder(
                read=_file(adapter / RELEASE_FILE, lambda path: read_note(path.parent)),
                seeds=(release,),
            ),
            "edge_runtime.adapter:read_tensors": Decoder(
                read=_file(adapter / "x.onnx_adapter", read_tensors), seeds=()
            ),
            "audit.releases:read_edge_adapter": Decoder(
                read=lambda data: read_edge_adapter(data, "x"), seeds=()
            ),
            "edge_runtime.probe:read_probe": Decoder(
                read=_file(self.folder / "probe.json", read_probe),
                seeds=(probe.model_dump_json().encode(),),
            ),
            "edge_runtime.store:read_state": Decoder(
                read=_file(self.folder / "store/state.json", lambda path: read_state(path.parent)),
                seeds=(state.model_dump_json().encode(),),
            ),
            "edge_runtime.passport:read_policy": Decoder(
                read=_file(self.folder / "policy", read_policy), seeds=(policy.encode(),)
            ),
            "edge_runtime.passport:verify_passport": Decoder(
                read=_file(adapter / PASSPORT_FILE, passported), seeds=(passport.encode(),)
            ),
            "edge_runtime.settings:read_device": Decoder(
                read=_file(self.folder / "device.toml", read_device), seeds=(settings.encode(),)
            ),
        }

    def _client(self) -> dict[str, Decoder]:
        session = Session(
            plan="0" * 64,
            run=bytes(16),
            sid=SID,
            seq=1,
            phase="advertise",
            seen={bytes(16): 1},
            asked=bytes(32),
            reply=b"x",
        )
        receipts = sorted(self.folder.glob("run-sites/*.receipts.jsonl"))[0].read_bytes()
        openings = sorted(self.folder.glob("run-sites/*.openings.jsonl"))[0].read_bytes()
        sid = json.loads(receipts.splitlines()[0])["sid"]

        def remembered(path: Path) -> object:
            memory = Receipts(path)
            return memory.held(), memory.told(bytes.fromhex(sid))

        headers = (
            frames.State(pid=1, code="c", served=0, busy=False),
            frames.Train(
                client="c", plan="p", base="b", data="d", threads=1, instruction={"round": 1}
            ),
            frames.Trained(weight=1, metrics={"examples": 1.0}),
            frames.Refused(error="PlanError", cause="c", remedy="r"),
        )
        label = self.plan.task.labels[0]
        rows = _line({"text": "hi", "label": label})
        table = f'text,label\n"h,i",{label}\n'.encode()
        return {
            "client.sessions:FileSession.load": Decoder(
                read=_file(self.folder / "s.json", lambda path: FileSession(path).load()),
                seeds=(session.model_dump_json().encode(),),
            ),
            "base_model.source_files:read_json": Decoder(
                read=_file(self.folder / "config.json", source_files.read_json),
                seeds=(b'{"model_type": "bert", "hidden_size": 8}',),
            ),
            "base_model.source_files:read_object": Decoder(
                read=_file(self.folder / "config.json", source_files.read_object),
                seeds=(b'{"model_type": "bert", "hidden_size": 8}',),
            ),
            "client.openings:FileOpenings.of": Decoder(
                read=_file(self.folder / "o.jsonl", lambda path: FileOpenings(path).of("0" * 64)),
                seeds=(openings,),
            ),
            "server.history:read_history": Decoder(
                read=_file(self.folder / HISTORY, lambda path: read_history(path.parent)),
                seeds=(
                    b'{"format":1,"event":"round","round":2,"turn":3,"time":1.5,"values":{"used":3.0}}\n',
                ),
            ),
            "client.receipts:Receipts.held": Decoder(
                read=_file(self.folder / "r.jsonl", remembered), seeds=(receipts,)
            ),
            "client.ledger:FileLedger.entries": Decoder(
                read=_file(self.folder / "l.jsonl", lambda path: FileLedger(path).entries()),
                seeds=(_line(ENTRY),),
            ),
            "client.frames:receive": Decoder(
                read=_received, seeds=tuple(one.model_dump_json().encode() for one in headers)
            ),
            "protocol.rows.read:read_rows": Decoder(
                read=_file(
                    self.folder / "rows.jsonl", lambda path: task_rows(path, self.plan.task)
                ),
                seeds=(rows,),
            ),
            "protocol.rows.read:read_rows, csv": Decoder(
                read=_file(self.folder / "rows.csv", lambda path: task_rows(path, self.plan.task)),
                seeds=(table,),
            ),
            "protocol.rows.read:read_rows, parquet": Decoder(
                read=_file(
                    self.folder / "rows.parquet", lambda path: task_rows(path, self.plan.task)
                ),
                seeds=(parquet({"text": ["hi"], "label": [label]}),),
            ),
        }

    def _operations(self) -> dict[str, Decoder]:
        authority = make_authority("x", now=datetime.now(UTC))
        invitation = Invitation(
            name="home",
            address="h:1",
            authority=authority.certificate.decode(),
            operator="0" * 64,
        )
        site = b'format = 1\nname = "ward"\nport = 9100\n[work]\ndata = "d"\nmirrors = ["m"]\n'
        coordinator = b'format = 1\nname = "c"\n[public]\nhosts = ["h"]\nport = 9092\n'
        copied = Path(shutil.copytree(self.run, self.folder / "copy"))
        waiting = copied / "log/log.batch"
        batch = _line({"start": len(self.entries), "entries": [], "checkpoint": self.note})
        return {
            "fedge.operations.folders:read_settings": Decoder(
                read=_file(
                    self.folder / "site.toml", lambda path: read_settings(path, SiteSettings)
                ),
                seeds=(site,),
            ),
            "fedge.operations.folders:read_settings, coordinator": Decoder(
                read=_file(
                    self.folder / "config.toml",
                    lambda path: read_settings(path, CoordinatorSettings),
                ),
                seeds=(coordinator,),
            ),
            "fedge.operations.site:read_invitation": Decoder(
                read=_file(self.folder / "invitation.json", read_invitation),
                seeds=(invitation.model_dump_json().encode(),),
            ),
            "fedge.operations.overview:read_outcome": Decoder(
                read=_file(
                    self.folder / "outcome/outcome.json", lambda path: read_outcome(path.parent)
                ),
                seeds=(b'{"finished": true}',),
            ),
            "audit.log_copy:read_log": Decoder(
                read=_file(waiting, lambda _: read_log(Folder(copied), Trust())), seeds=(batch,)
            ),
        }
