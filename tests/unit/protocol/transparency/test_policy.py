"""Policies and offline proofs: C2SP's examples, what they refuse, and that one key is one witness."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProofError
from protocol.merkle import leaf_hash
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    cosign,
    sign_note,
)
from protocol.transparency.offline import OfflineProof, parse_offline_proof
from protocol.transparency.policy import parse_policy, simple_policy
from protocol.transparency.tree import Tree
from protocol.transparency.witness import witness_key

ORIGIN = "example.com/log42"
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRETS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 16) for name in
           ("X1", "X2", "X3", "Y1", "Y2", "Y3")}  # fmt: skip
KEYS = {name: witness_key(f"{name}.example", key) for name, key in SECRETS.items()}


def log_key(key: Ed25519PrivateKey = LOG, name: str = ORIGIN) -> VerifierKey:
    return VerifierKey(name=name, type=KeyType.ED25519, public=key.public_key().public_bytes_raw())


# The example of C2SP tlog-policy, with keys in it.
EXAMPLE = f"""# two operators
log {log_key().encode()}

witness X1 {KEYS["X1"].encode()}
witness X2 {KEYS["X2"].encode()} https://x2.example/prefix
\twitness\tX3  {KEYS["X3"].encode()}
group X-witnesses 2 X1 X2 X3

witness Y1 {KEYS["Y1"].encode()}
witness Y2 {KEYS["Y2"].encode()}
witness Y3 {KEYS["Y3"].encode()}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
TREE = Tree(leaf_hash(str(number).encode()) for number in range(11))


def note(*witnesses: str, key: Ed25519PrivateKey = LOG, origin: str = ORIGIN) -> str:
    text = Checkpoint(origin=origin, size=TREE.size, root=TREE.root()).text
    found = f"{text}\n{sign_note(text, origin, key)}"
    for name in witnesses:
        found += cosign(text, KEYS[name].name, SECRETS[name], time=1_790_000_000)
    return found


@given(st.sets(st.sampled_from(sorted(KEYS))))
def test_the_published_example_means_what_it_says(signers: set[str]) -> None:
    policy = parse_policy(EXAMPLE)
    xs = {name for name in signers if name.startswith("X")}
    if len(xs) >= 2 and signers - xs:
        assert policy.verify_checkpoint(note(*sorted(signers))).size == 11
    else:
        with pytest.raises(ProofError, match="no quorum"):
            policy.verify_checkpoint(note(*sorted(signers)))


def test_what_is_written_reads_the_same() -> None:
    policy = parse_policy(EXAMPLE)
    assert parse_policy(policy.render()) == policy
    made = simple_policy(log_key(), list(KEYS.values()), 4)
    assert parse_policy(made.render()) == made
    assert simple_policy(log_key(), [], 0).verify_checkpoint(note()).origin == ORIGIN


def test_without_the_logs_own_signature_no_quorum_helps() -> None:
    policy = parse_policy(EXAMPLE)
    foreign = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(ProofError, match="no log"):
        policy.verify_checkpoint(note("X1", "X2", "Y1", key=foreign))
    with pytest.raises(ProofError, match="no log"):
        policy.verify_checkpoint(note("X1", "X2", "Y1", origin="example.com/other"))
    both = parse_policy(EXAMPLE.replace("# two operators", f"log {log_key(foreign).encode()}"))
    assert both.verify_checkpoint(note("X1", "X2", "Y1", key=foreign)).origin == ORIGIN


def test_a_cosignature_repeated_counts_once() -> None:
    with pytest.raises(ProofError, match="no quorum"):
        parse_policy(EXAMPLE).verify_checkpoint(note("X1", "X1", "Y1"))


TWICE = witness_key("other.example", SECRETS["X1"]).encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quorum X-and-Y\n", ""),
        ("quorum X-and-Y\n", "quorum X-and-Y\nquorum X-and-Y\n"),
        ("quorum X-and-Y", "quorum nobody"),
        ("quorum X-and-Y", "quorum X1 X2"),
        ("group X-witnesses 2 X1", "group X-witnesses 4 X1"),
        ("group X-witnesses 2 X1", "group X-witnesses 0 X1"),
        ("group X-witnesses 2 X1", "group X-witnesses 02 X1"),
        ("group X-witnesses 2 X1", "group X-witnesses 2 X2"),
        ("group X-witnesses 2 X1", "group X-witnesses 2 Y1"),
        ("group X-witnesses 2 X1", "group none 2 X1"),
        ("any Y1 Y2", "any X1 Y2"),
        ("any Y1 Y2 Y3", "any"),
        ("all X-witnesses", "all none"),
        ("witness Y1", "witness X1"),
        ("witness Y1", "witness X-witnesses"),
        (KEYS["Y1"].encode(), KEYS["X1"].encode()),
        (KEYS["Y1"].encode(), TWICE),
        (KEYS["Y1"].encode(), log_key(SECRETS["Y1"]).encode()),
        (KEYS["Y1"].encode(), KEYS["Y1"].encode()[:-4]),
        (log_key().encode(), witness_key(ORIGIN, LOG).encode()),
        ("# two operators", f"log {log_key(name='again').encode()}"),
        ("# two operators", "witnes X9 x"),
        ("# two operators", "# \x07"),
        ("# two operators\n", "# two operators\r\n"),
    ],
)
def test_another_policy_is_refused(old: str, new: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(ProofError):
        parse_policy(EXAMPLE.replace(old, new, 1))


# -- offline proofs ---------------------------------------------------------------------------------

# The example of C2SP tlog-proof up to its signatures, which are published shortened.
PUBLISHED = """c2sp.org/tlog-proof@v1
extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6
index 73894
gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=
RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=
AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=

example.com/fancylog
109482
sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

"""


def proof(index: int, extra: bytes | None = None) -> OfflineProof:
    path = tuple(TREE.inclusion(index))
    return OfflineProof(index=index, path=path, checkpoint=note("X1", "X2", "Y1"), extra=extra)


def test_the_published_proof_is_read_and_written_alike() -> None:
    found = parse_offline_proof(PUBLISHED)
    assert (found.index, len(found.path)) == (73894, 5)
    assert found.extra == b"age-v1.2.1-darwin-arm64.tar.gz"
    assert found.checkpoint.startswith("example.com/fancylog\n109482\n")
    assert found.encode() == PUBLISHED


@given(st.integers(0, 10), st.none() | st.binary(max_size=40))
def test_every_leaf_has_a_proof_that_holds_for_it_alone(index: int, extra: bytes | None) -> None:
    policy = parse_policy(EXAMPLE)
    made = proof(index, extra)
    found = parse_offline_proof(made.encode())
    assert found == made
    found.verify(str(index).encode(), policy)
    with pytest.raises(ProofError):
        found.verify(str(index + 1).encode(), policy)
    moved = OfflineProof(index=(index + 1) % 11, path=found.path, checkpoint=found.checkpoint)
    with pytest.raises(ProofError):
        moved.verify(str(index).encode(), policy)


def test_a_proof_needs_the_quorum() -> None:
    made = OfflineProof(index=3, path=tuple(TREE.inclusion(3)), checkpoint=note("X1", "X2"))
    with pytest.raises(ProofError, match="no quorum"):
        made.verify(b"3", parse_policy(EXAMPLE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("proof@v1", "proof@v2"),
        ("index 73894", "index 073894"),
        ("index 73894", "index -1"),
        ("index 73894\n", ""),
        ("index 73894\n", "index 73894\nindex 73894\n"),
        ("extra YWdl", "extra YW l"),
        (
            "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=",
            "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlR=",
        ),
        ("gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=", "gSKyXoYZUgZ6"),
        ("AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=\n\nexample", "example"),
        ("AHCi", "AHCi\u00e4"),
    ],
)
def test_another_text_is_no_proof(old: str, new: str) -> None:
    assert old in PUBLISHED
    with pytest.raises(ProofError):
        parse_offline_proof(PUBLISHED.replace(old, new, 1))
