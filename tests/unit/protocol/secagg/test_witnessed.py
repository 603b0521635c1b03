"""Under witnesses a client opens the one sum whose alive set lies at its planned place in the log."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import SecrecyError
from protocol.merkle import leaf_hash
from protocol.secagg import client
from protocol.secagg.witnessed import agree_by_log, encode_by_log
from protocol.transparency.leaf_codec import encode_statement, sha256
from protocol.transparency.leaves import Abort, Alive
from protocol.transparency.lists import of_clients
from protocol.transparency.note import Checkpoint, KeyType, VerifierKey, cosign, sign_note
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import simple_policy
from protocol.transparency.tree import Tree
from tests.unit.protocol.secagg.conftest import Cohort

INDEX, ORIGIN = 7, "log.example/run"
LOG = Ed25519PrivateKey.generate()
WITNESSES = {f"witness-{n}.example": Ed25519PrivateKey.generate() for n in range(3)}


def verifier(name: str, kind: KeyType, key: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey(name=name, type=kind, public=key.public_key().public_bytes_raw())


POLICY = simple_policy(
    verifier(ORIGIN, KeyType.ED25519, LOG),
    [verifier(name, KeyType.COSIGNATURE, key) for name, key in WITNESSES.items()],
    2,
).render()


class Log:
    """A log of ten leaves with one alive set in it; a test builds others."""

    def __init__(self, leaf: bytes, index: int = INDEX) -> None:
        self.leaf, self.index = leaf, index
        self.entries = [b"x%d" % n for n in range(index)] + [leaf, b"behind", b"it"]

    def proof(
        self, *, index: int | None = None, signers: int = 2, extra: bool = True, size: int = 0
    ) -> bytes:
        tree = Tree(map(leaf_hash, self.entries))
        size = size or tree.size
        text = Checkpoint(origin=ORIGIN, size=size, root=tree.root(size)).text
        note = f"{text}\n{sign_note(text, ORIGIN, LOG)}"
        for name, key in list(WITNESSES.items())[:signers]:
            note += cosign(text, name, key, time=5)
        at = self.index if index is None else index
        made = OfflineProof(
            index=at,
            path=tuple(tree.inclusion(self.index, size)),
            checkpoint=note,
            extra=self.leaf if extra else None,
        )
        return made.encode().encode()


class Witnessed(Cohort):
    """A cohort up to its masked vectors."""

    def __init__(self, size: int = 6, **settings: Any) -> None:
        super().__init__(size=size, minimum=3, **settings)
        self.policy = self.policy.model_copy(update={"log_policy": POLICY})

    def advertise(self) -> bytes:
        close = self.attempt.close_adverts
        self.attempt.close_adverts = lambda asked: close(asked, alive_index=INDEX)  # type: ignore[method-assign,assignment,misc]
        return super().advertise()

    def masked(self) -> None:
        self.mask(self.share(self.advertise()))

    def leaf(self, *, key: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
        fields = {
            "seq": 1,
            "group": 0,
            "rid": self.attempt.rid.hex(),
            "clients": [one.hex() for one in self.attempt.alive],
            "signatures": {},
        }
        return encode_statement(Alive(**(fields | changes)), {"round": "0" * 64}, key or LOG)

    def agreed(self, one: bytes, message: bytes) -> client.Agreed:
        state = self.states[one]
        assert isinstance(state, client.Masked)
        return agree_by_log(state, message, policy=self.policy)


@pytest.fixture(scope="module")
def masked() -> Witnessed:
    made = Witnessed(lost={"mask": (2,)})
    made.masked()
    return made


def test_the_sum_opens_by_the_log() -> None:
    made = Witnessed(size=9, lost={"mask": (2,), "unmask": (4,)})
    made.masked()
    proof = Log(made.leaf()).proof()
    made.attempt.agreed_by_log()
    for one in made.here("unmask", made.attempt.alive):
        made.attempt.receive_unmask(one, client.reveal(made.agreed(one, proof)))
    assert np.array_equal(made.attempt.unmask(), made.total.astype(np.uint16))
    assert made.attempt.transcript().alive_index == INDEX


Change = Callable[[Witnessed], bytes]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: Log(m.leaf()).proof(signers=1), "alive.proof"),
        (lambda m: Log(m.leaf()).proof(signers=0), "alive.proof"),
        (lambda m: Log(m.leaf()).proof(extra=False), "alive.proof"),
        (lambda m: Log(m.leaf()).proof(index=INDEX - 1), "alive.proof"),
        (lambda m: Log(m.leaf(), INDEX + 1).proof(), "alive.index"),
        (lambda m: Log(m.leaf(rid="1" * 64)).proof(), "alive.other-round"),
        (lambda m: Log(m.leaf(clients=[])).proof(), "alive.own-missing"),
        (lambda m: Log(m.leaf(clients=[i.hex() for i in m.ids[:2]])).proof(), "alive.too-small"),
        (lambda m: Log(m.leaf(clients=[*[m.ids[0].hex()] * 2])).proof(), "alive.order"),
        (lambda m: Log(m.leaf(clients=["1" * 32])).proof(), "alive.unknown-client"),
        (lambda m: Log(m.leaf(key=Ed25519PrivateKey.generate())).proof(), "alive.proof"),
        (lambda m: Log(b'{"kind":"pad"}').proof(), "alive.proof"),
        (
            lambda m: Log(
                encode_statement(
                    Abort(seq=1, group=None, round=1, attempt=1, revealed=[]),
                    {"p": "0" * 64},
                    LOG,
                )
            ).proof(),
            "alive.proof",
        ),
        (lambda m: b"", "alive.proof"),
        (lambda m: b"\xff\xfe", "alive.proof"),
        (lambda m: os.urandom(500), "alive.proof"),
    ],
)
def test_anything_else_is_refused_and_reveals_nothing(
    masked: Witnessed, change: Change, code: str
) -> None:
    one = masked.ids[0]
    with pytest.raises(SecrecyError) as refused:
        masked.agreed(one, change(masked))
    assert refused.value.code.startswith(code)


def test_every_changed_byte_of_a_proof_is_refused(masked: Witnessed) -> None:
    proof = Log(masked.leaf()).proof(signers=2)
    for at in range(0, len(proof), 3):
        changed = proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :]
        with pytest.raises(SecrecyError):
            masked.agreed(masked.ids[0], changed)


def test_a_cohort_in_the_other_mode_is_refused() -> None:
    signing = Witnessed()
    signing.policy = signing.policy.model_copy(update={"log_policy": ""})
    with pytest.raises(SecrecyError, match=r"cohort\.mode"):
        signing.share(signing.advertise())
    plain = Cohort(size=6, minimum=3)
    plain.policy = plain.policy.model_copy(update={"log_policy": POLICY})
    with pytest.raises(SecrecyError, match=r"cohort\.mode"):
        plain.share(plain.advertise())


@pytest.mark.slow
def test_a_large_alive_set_comes_beside_the_leaf_that_has_its_digest() -> None:
    made = Witnessed(size=132, count=5, lost={"mask": (2,)})
    made.masked()
    alive, one = made.attempt.alive, made.attempt.alive[0]
    leaf = made.leaf(clients=of_clients([each.hex() for each in alive], sha256))
    proof = Log(leaf).proof()

    def refused(code: str, message: bytes) -> None:
        with pytest.raises(SecrecyError, match=f"^{code}"):
            made.agreed(one, message)

    assert made.agreed(one, encode_by_log(proof, alive, complete=False)).alive == alive
    refused("alive.other-set", encode_by_log(proof, alive[:-1], complete=False))
    refused("alive.order", encode_by_log(proof, alive, complete=False) + alive[0])
    refused("alive.malformed", b"")
    refused("alive", encode_by_log(proof, alive, complete=True))
    # A leaf with all of them in it is not the form of so many: its list is none of a file.
    named = Log(made.leaf()).proof()
    refused("alive.other-set", encode_by_log(named, alive, complete=False))
