"""Decoders, by house. Requests and rosters of a consortium."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.enrolment import (
    Site,
    make_request,
    node_key_bytes,
    sign_roster,
    verify_request,
    verify_roster,
)
from tests.properties.decoders.rows import (
    Decoder,
    payload_of,
    signed_by,
)
from tests.properties.decoders.world import World


def enrolment(world: World) -> dict[str, Decoder]:
    node = ec.generate_private_key(ec.SECP384R1())
    request = make_request("ward-1", world.key, node)
    site = Site(name="ward-1", identity=world.public, node_key=node_key_bytes(node.public_key()))
    roster = sign_roster(1, [site], world.key)

    def roster_of(data: bytes) -> object:
        return verify_roster(data, world.public, least=1, source="r").render()

    return {
        "protocol.enrolment:verify_request": Decoder(
            read=lambda data: verify_request(data, source="q"), seeds=(request,)
        ),
        "protocol.enrolment:verify_request, signed": Decoder(
            read=lambda data: verify_request(signed_by(data, world.key), source="q"),
            seeds=(payload_of(request),),
        ),
        "protocol.enrolment:verify_roster": Decoder(read=roster_of, seeds=(roster,)),
        "protocol.enrolment:verify_roster, signed": Decoder(
            read=lambda data: roster_of(signed_by(data, world.key)), seeds=(payload_of(roster),)
        ),
    }
