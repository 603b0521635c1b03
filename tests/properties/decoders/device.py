"""Decoders, by house. What a device reads."""

from __future__ import annotations

from pathlib import Path

from audit.releases import read_edge_adapter
from edge_runtime.adapter import read_any_note, read_note, read_tensors
from edge_runtime.blends.note import (
    BLEND_FILE,
    BlendNote,
    BlendPart,
    parse_blend,
    read_blend,
    render_blend,
)
from edge_runtime.decoder.http.forms import ApiError, ChatCompletion, parse_asked
from edge_runtime.passport import read_policy, verify_passport
from edge_runtime.probe import Golden, Probe, Turn, read_probe
from edge_runtime.settings import read_device
from edge_runtime.store import Installed, Personal, State, read_state
from protocol.errors import DataError, ProofError
from protocol.merkle import leaf_hash
from protocol.peft_format import PASSPORT_FILE, RELEASE_FILE, ReleaseNote, parse_release
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import parse_policy
from protocol.transparency.tree import Tree
from tests.properties.decoders.rows import (
    Decoder,
    of_file,
    of_text,
)
from tests.properties.decoders.world import World


def asked(data: bytes) -> object:
    """A request for a text; it is refused with an answer of its own."""
    try:
        return parse_asked(ChatCompletion, data)
    except ApiError as error:
        raise DataError(str(error), "") from None


def device(world: World) -> dict[str, Decoder]:
    texts = Decoder(
        read=asked,
        seeds=(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stop": ["a"]}',),
    )
    return (
        {"edge_runtime.decoder.http.forms:parse_asked": texts}
        | _release(world)
        | _blend(world)
        | _own_files(world)
        | _passport(world)
    )


def _release(world: World) -> dict[str, Decoder]:
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
    adapter = world.folder / "adapter"
    return {
        "protocol.peft_format:parse_release": Decoder(
            read=of_text(lambda t: parse_release(t, source="r")), seeds=(release,)
        ),
        "edge_runtime.adapter:read_note": Decoder(
            read=of_file(adapter / RELEASE_FILE, lambda path: read_note(path.parent)),
            seeds=(release,),
        ),
        "edge_runtime.adapter:read_tensors": Decoder(
            read=of_file(adapter / "x.onnx_adapter", read_tensors), seeds=()
        ),
        "audit.releases:read_edge_adapter": Decoder(
            read=lambda data: read_edge_adapter(data, "x"), seeds=()
        ),
    }


def _blend(world: World) -> dict[str, Decoder]:
    part = BlendPart(plan_name="p", round=1, release="1" * 64, adapter="2" * 64, weight=-0.5)
    note = BlendNote(
        base_fingerprint="0" * 64,
        parts=[part, part],
        verified=True,
        task="classification",
        pairs=False,
        labels=["a", "b"],
        range=None,
        max_length=8,
        calibration=None,
        files={"adapter.onnx_adapter": "3" * 64},
    )
    blend, folder = render_blend(note), world.folder / "blend"
    folder.mkdir(exist_ok=True)
    return {
        "edge_runtime.blends.note:parse_blend": Decoder(
            read=of_text(lambda t: parse_blend(t, source="b")), seeds=(blend,)
        ),
        "edge_runtime.blends.note:read_blend": Decoder(
            read=of_file(folder / BLEND_FILE, lambda path: read_blend(path.parent)),
            seeds=(blend,),
        ),
        "edge_runtime.adapter:read_any_note": Decoder(
            read=of_file(folder / BLEND_FILE, lambda path: read_any_note(path.parent)),
            seeds=(blend,),
        ),
    }


def _own_files(world: World) -> dict[str, Decoder]:
    probe = Probe(
        rows=[Golden(text="x", label="a")],
        least_correct=1,
        most_latency_ms=5.0,
        most_memory_mb=5.0,
    )
    chat = [Turn(role="user", content="x")]
    texts = Probe(
        rows=[Golden(messages=chat, contains="a"), Golden(text="x", contains="b")],
        max_tokens=8,
        least_correct=1,
        most_latency_ms=5.0,
        most_memory_mb=5.0,
    )
    files = {"adapter.onnx_adapter": "2" * 64}
    personal = Personal(
        id="3" * 64,
        origin="0" * 64,
        adapter=Installed(seq=1, files=files),
        rows=40,
        held_out=8,
        quality="accuracy",
        before=0.625,
        after=0.875,
        time=1_700_000_000,
    )
    state = State(current="0" * 64, installed={}, withdrawn=["1" * 64], personal=personal)
    settings = (
        'format = 1\nid = "d1"\nname = "home"\nrepository = "repo"\nroot = "root.json"\n'
        'trust = "policy"\nbase = "base"\nstore = "store"\nprobe = "probe.json"\n'
        "personal = false\nthreads = 1\ndeadline_s = 300.0\n"
    )

    return {
        "edge_runtime.probe:read_probe": Decoder(
            read=of_file(world.folder / "probe.json", read_probe),
            seeds=(probe.model_dump_json().encode(), texts.model_dump_json().encode()),
        ),
        "edge_runtime.store:read_state": Decoder(
            read=of_file(world.folder / "store/state.json", lambda path: read_state(path.parent)),
            seeds=(state.model_dump_json().encode(),),
        ),
        "edge_runtime.settings:read_device": Decoder(
            read=of_file(world.folder / "device.toml", read_device), seeds=(settings.encode(),)
        ),
    }


def _passport(world: World) -> dict[str, Decoder]:
    policy = f"log {world.log_key.encode()}\nquorum none\n"
    trusted = parse_policy(policy)
    passport = OfflineProof(
        index=0,
        path=tuple(Tree(map(leaf_hash, world.entries)).inclusion(0)),
        checkpoint=world.note,
        extra=world.entries[0],
    ).encode()

    def passported(path: Path) -> object:
        """The seed's leaf is in the log, and no release's: that is the last check."""
        try:
            return verify_passport(path.parent, round_number=1, policy=trusted)
        except ProofError as error:
            if "not of a release" in error.cause:
                return None
            raise

    return {
        "edge_runtime.passport:read_policy": Decoder(
            read=of_file(world.folder / "policy", read_policy), seeds=(policy.encode(),)
        ),
        "edge_runtime.passport:verify_passport": Decoder(
            read=of_file(world.folder / "adapter" / PASSPORT_FILE, passported),
            seeds=(passport.encode(),),
        ),
    }
