"""Decoders, by house. What is delivered to devices, and the evidence of a release."""

from __future__ import annotations

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from delivery.evidence import verify_evidence
from delivery.gate import read_audit
from delivery.status import read_reports
from protocol.bitmap_form import decode_bitmap, encode_bitmap
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
from protocol.transparency.dsse import (
    sign_statement,
)
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    of_file,
)
from tests.properties.decoders.world import World


def delivery(world: World) -> dict[str, Decoder]:
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
        kind = Facts if b"log_origin" in data else DeviceReport if b"faults" in data else Current
        return decode(kind, data, source="x")

    evidence = sign_statement(GATE, {"passed": True}, {"a": "0" * 64}, world.key)
    summary = audit(Folder(world.run), Trust()).to_dict()
    sparse = bytes(400) + b"abcd" * 5 + b"e"
    return {
        "protocol.bitmap_form:decode_bitmap": Decoder(
            read=lambda data: decode_bitmap(data, length=len(sparse), source="x"),
            seeds=(encode_bitmap(sparse),),
        ),
        "protocol.delivery:decode": Decoder(
            read=form, seeds=tuple(map(encode, (current, report, facts)))
        ),
        "delivery.status:read_reports": Decoder(
            read=of_file(world.folder / "reports/d.json", lambda path: read_reports(path.parent)),
            seeds=(encode(report),),
        ),
        "delivery.evidence:verify_evidence": Decoder(
            read=lambda data: verify_evidence(data, {"0" * 64}, [world.public]),
            seeds=(evidence,),
        ),
        "delivery.gate:read_audit": Decoder(
            read=of_file(world.folder / "audit.json", read_audit), seeds=(json_line(summary),)
        ),
    }
