"""Files made to break whoever reads them: an auditor, a client or a device ends with one plain error.

The log's key signs all of them, so nothing is stopped by a signature.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder, open_source
from audit.verify import audit
from audit.witness import Witness, begin
from protocol.documents import MOST_LEVELS
from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ArtefactError, FedgeError, PlanError, ProofError
from protocol.plan import parse_plan, plan_from_text
from protocol.plan_sections import Audit
from protocol.recipe import Recipe
from protocol.secagg.roster import parse_roster
from protocol.step.checkpoint import decode_checkpoint
from protocol.tensor_file import decode_tensors
from protocol.transparency.dsse import PAYLOAD_TYPE, key_id, pae
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.note import Checkpoint, KeyType, VerifierKey, parse_key, sign_note
from protocol.transparency.policy import policy_of
from tests.adversaries.forger import Forger
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import make_run, small_plan

DEEP = b"[" * 20_000 + b"]" * 20_000


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def forge(tmp_path: Path, honest: Path) -> Callable[[], Forger]:
    def make() -> Forger:
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        return Forger(Path(shutil.copytree(honest, folder)))

    return make


def audited(run: Path) -> Report:
    return audit(Folder(run), Trust())


# -- nesting --------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_canonical_json_has_few_levels() -> None:
    assert parse_canonical(canonical_json(nested(MOST_LEVELS))) == nested(MOST_LEVELS)
    for data in (canonical_json(nested(MOST_LEVELS + 1)), DEEP, b'{"a":' + DEEP + b"}"):
        with pytest.raises(ValueError, match="too deeply"):
            parse_canonical(data)


def signed_payload(forger: Forger, payload: bytes) -> bytes:
    public = forger.key.public_key().public_bytes_raw()
    signature = forger.key.sign(pae(PAYLOAD_TYPE, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key_id(public), "sig": base64.b64encode(signature).decode()}],
        }
    )


def test_a_leaf_that_is_nested_too_deeply(forge: Callable[[], Forger]) -> None:
    forger = forge()
    for entry in (b'{"payload":' + DEEP + b"}", signed_payload(forger, DEEP)):
        with pytest.raises(ProofError):
            decode_leaf(entry)
        forger.entries.append(entry)
    assert len(audited(forger.sign()).faults) == 2


def test_documents_that_are_nested_too_deeply(forge: Callable[[], Forger]) -> None:
    text = DEEP.decode()
    for parse in (
        lambda: parse_plan(f"a = {text}", source="x.toml"),
        lambda: plan_from_text(text, source="x.json"),
        lambda: parse_roster(text, source="x"),
    ):
        with pytest.raises(PlanError):
            parse()
    forger = forge()
    (forger.run / "plan.json").write_bytes(DEEP)
    forger.resubject(0, {"plan.json": sha256(DEEP)})
    with pytest.raises(FedgeError):
        audited(forger.sign())


def test_a_roster_has_names_that_can_be_shown() -> None:
    for name in ("a\x1f00\nb", "\x1b[2J", "", "a" * 201):
        with pytest.raises(PlanError, match="no name"):
            parse_roster(json.dumps({"clients": {name: "0" * 64}}), source="x")


# -- sizes ----------------------------------------------------------------------------------------


def with_checkpoint(forger: Forger, size: int) -> Path:
    origin = (forger.run / "log/key").read_text().partition("+")[0]
    text = Checkpoint(origin=origin, size=size, root=bytes(32)).text
    (forger.run / "log/checkpoint").write_text(f"{text}\n{sign_note(text, origin, forger.key)}")
    return forger.run


def test_a_checkpoint_of_more_leaves_than_there_can_be(
    forge: Callable[[], Forger], tmp_path: Path
) -> None:
    run = with_checkpoint(forge(), 10**18)
    with pytest.raises(ProofError, match="at most"):
        audited(run)
    key = parse_key((run / "log/key").read_text().strip())
    begin(tmp_path / "witness", "w.example", own := Ed25519PrivateKey.generate())
    witness = Witness(tmp_path / "witness", own, [key], lambda: 1)
    with pytest.raises(ProofError, match="at most"):
        witness.follow(lambda name: (run / "log" / name).read_bytes())
    witness.close()


@pytest.mark.parametrize(
    ("name", "most"), [("log/key", 2**20), ("log/tile/0/000.p/9", 2**13), ("plan.json", 2**26)]
)
def test_a_small_file_that_is_not_small(name: str, most: int, forge: Callable[[], Forger]) -> None:
    path = forge().run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(2**40)  # no disk holds it, and no memory
    with pytest.raises(ArtefactError, match=f"more than {most} bytes"):
        Folder(path.parents[len(Path(name).parts) - 1]).read(name)


def test_links_that_lead_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "plan.json").symlink_to(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").symlink_to(tmp_path / "plan.json")
    with pytest.raises(FedgeError):
        Folder(tmp_path).read("plan.json")


@pytest.mark.parametrize("url", ["http://[::1", f"http://{'a' * 70}.example", "http://a:b"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ArtefactError):
        open_source(url).read("plan.json")


def tensor_file(tensors: dict[str, tuple[list[int], int]], metadata: dict[str, str]) -> bytes:
    """A file of zeros as P-4.9 spells it: shape and number of floats by name."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (shape, count) in tensors.items():
        start, end = end, end + 4 * count
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(end)


def test_tensors_of_no_possible_shape() -> None:
    for shape in ([0, 2**52, 2**52], [2**52, 0, 2**52]):
        with pytest.raises(ArtefactError, match="no usable shape"):
            decode_tensors(tensor_file({"a": (shape, 0)}, {}), source="x")
    one = ([1], 1)
    data = tensor_file(
        {"adapter/m.lora_A": ([], 1), "moment1": one, "moment2": one}, {"fedge": "{}"}
    )
    with pytest.raises(ArtefactError, match=r"metadata|different|sizes"):
        decode_checkpoint(data, source="x")


def test_a_layout_that_fills_the_memory() -> None:
    plan, manifest = small_plan()
    wide = [linear.model_copy(update={"in_features": 2**50}) for linear in manifest.linears]
    layout = Recipe(plan=plan, manifest=manifest.model_copy(update={"linears": wide})).layout
    tensors = {spec.name: np.zeros(1, np.float32) for spec in layout.specs}
    with pytest.raises(ArtefactError, match="the plan says"):
        layout.flatten(tensors)


def test_a_sum_of_nobody(forge: Callable[[], Forger]) -> None:
    for kind, field in (("round-open", "members"), ("alive", "clients")):
        forger = forge()
        forger.edit(forger.at(kind), lambda leaf, field=field: leaf.update({field: []}))
        assert audited(forger.sign()).rounds[1].faults


def test_boxes_that_nobody_needs(tmp_path: Path) -> None:
    """A file of the hybrid form holds the boxes of lost pairs, and hides nothing beside them."""
    options: dict[str, Any] = {"count": 8, "cohort": EIGHT, "lost": some_are_lost}
    run = make_run(tmp_path / "run", secrecy={"keys": "x25519+ml-kem-768"}, **options)
    name = "rounds/0001/sums/0.boxes.json"
    boxes = parse_canonical((run / name).read_bytes())
    junk = {"sender": "00", "receiver": "11", "box": "22", "path": []}
    for changed, fault in (
        ([*boxes, junk], "others than those of lost pairs"),
        ([*boxes, boxes[0]], "listed twice"),
        (boxes[1:], "is missing"),
    ):
        forger = Forger(run)
        data = canonical_json(changed)
        (run / name).write_bytes(data)
        forger.edit(forger.at("reveal"), lambda leaf, data=data: leaf.update(boxes=sha256(data)))
        found = audited(forger.sign()).rounds[1].faults
        assert any(fault in each for each in found), found


# -- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("cohort", {"quorum": 1}, "no secret"),
        ("secrecy", {"groups": 1000}, "no secret"),
        ("privacy", {"mechanism": "distributed", "corrupt": 3}, "corrupt"),
        ("adapter", {"rank": 4096}, "rank"),
    ],
)
def test_a_plan_that_may_not_be_run(
    section: str, change: dict[str, Any], message: str, forge: Callable[[], Forger]
) -> None:
    forger = forge()
    document = json.loads((forger.run / "plan.json").read_text())
    document[section] |= change
    text = json.dumps(document)
    forger.republish("plan.json", text.encode())
    digest = plan_from_text(text, source="x.json").digest
    forger.edit(0, lambda leaf: leaf.update(plan=digest))
    with pytest.raises(PlanError, match=message):
        audited(forger.sign())


def test_a_quorum_that_is_none() -> None:
    """Under it a coordinator would show each client an alive set of its own."""
    log = key_of("log.example", KeyType.ED25519)
    witnesses = [key_of(f"w{n}.example", KeyType.COSIGNATURE) for n in range(3)]
    for quorum in (0, 1, 4):
        with pytest.raises(ProofError, match="share none"):
            policy_of(Audit(log=log, witnesses=witnesses, witness_quorum=quorum))
    itself = VerifierKey(
        name="w.example", type=KeyType.COSIGNATURE, public=parse_key(log).public
    ).encode()
    with pytest.raises(ProofError, match="one of its witnesses"):
        policy_of(Audit(log=log, witnesses=[*witnesses, itself], witness_quorum=3))


def key_of(name: str, kind: KeyType) -> str:
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    return VerifierKey(name=name, type=kind, public=public).encode()
