"""Signed notes: a published example, every way in which one is refused, checkpoints, cosignatures."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ProofError
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    cosign,
    parse_checkpoint,
    parse_key,
    sign_note,
    verify_note,
)

# The example of golang.org/x/mod/sumdb/note, from which the format comes.
PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "\u2014 PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
TEXT = Checkpoint(origin="fedge.example/run", size=7, root=bytes(range(32))).text
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def verifier(name: str, key: Ed25519PrivateKey, kind: KeyType = KeyType.ED25519) -> VerifierKey:
    return VerifierKey(name=name, type=kind, public=key.public_key().public_bytes_raw())


def test_the_published_example_verifies() -> None:
    key = parse_key(PUBLISHED_KEY)
    assert key.encode() == PUBLISHED_KEY
    signed = verify_note(PUBLISHED, [key])
    assert signed.text == PUBLISHED.partition("\n\n")[0] + "\n"
    assert list(signed.by) == [PUBLISHED_KEY]
    with pytest.raises(ProofError, match="not valid"):
        verify_note(PUBLISHED.replace("answer", "Answer"), [key])


def test_signatures_of_several_and_unknown_keys() -> None:
    note = TEXT + "\n" + sign_note(TEXT, "log", KEY)
    note += sign_note(TEXT, "stranger", OTHER)
    note += cosign(TEXT, "witness", OTHER, time=1_700_000_000)
    witness = verifier("witness", OTHER, KeyType.COSIGNATURE)
    signed = verify_note(note, [verifier("log", KEY), witness])
    assert signed.by == {verifier("log", KEY).encode(): None, witness.encode(): 1_700_000_000}
    with pytest.raises(ProofError, match="nobody known"):
        verify_note(note, [verifier("log", OTHER)])


def test_a_known_key_that_fails_rejects_the_note_whoever_else_signed() -> None:
    good, bad = sign_note(TEXT, "log", KEY), cosign(TEXT, "witness", OTHER, time=5)
    data = bytearray(base64.b64decode(bad.split(" ")[2]))
    data[-1] ^= 1
    forged = f"\u2014 witness {base64.b64encode(bytes(data)).decode()}\n"
    witness = verifier("witness", OTHER, KeyType.COSIGNATURE)
    with pytest.raises(ProofError, match="signature of witness"):
        verify_note(TEXT + "\n" + good + forged, [verifier("log", KEY), witness])


def test_a_cosignature_is_bound_to_its_time() -> None:
    line = cosign(TEXT, "witness", OTHER, time=5)
    data = bytearray(base64.b64decode(line.split(" ")[2]))
    data[4:12] = (6).to_bytes(8, "big")
    later = f"\u2014 witness {base64.b64encode(bytes(data)).decode()}\n"
    with pytest.raises(ProofError, match="not valid"):
        verify_note(TEXT + "\n" + later, [verifier("witness", OTHER, KeyType.COSIGNATURE)])


@pytest.mark.parametrize(
    "note",
    [
        "",
        TEXT,
        TEXT + "\n",
        TEXT + "\n\u2014 log \n",
        TEXT + "\n- log AAAAAAAA\n",
        TEXT + "\n\u2014 log not-base64\n",
        TEXT + "\n\u2014 lo+g AAAAAAAA\n",
        TEXT.replace("7", "\x07") + "\n" + sign_note(TEXT, "log", KEY),
        TEXT + "\n" + sign_note(TEXT, "log", KEY).rstrip("\n"),
        TEXT + "\n" + sign_note(TEXT, "log", KEY) * 101,
    ],
)
def test_another_form_is_refused(note: str) -> None:
    with pytest.raises(ProofError, match="not usable"):
        verify_note(note, [verifier("log", KEY)])


def test_seventeen_signatures_are_few() -> None:
    lines = "".join(sign_note(TEXT, f"s{number}", OTHER) for number in range(16))
    assert verify_note(TEXT + "\n" + lines + sign_note(TEXT, "log", KEY), [verifier("log", KEY)])


def test_a_checkpoint_is_of_its_log_and_nothing_more() -> None:
    found = parse_checkpoint(TEXT, origin="fedge.example/run")
    assert (found.size, found.root) == (7, bytes(range(32)))
    for text, why in (
        (TEXT.replace("run", "other"), "not of"),
        (TEXT.replace("\n7\n", "\n07\n"), "no number"),
        (TEXT.replace("\n7\n", "\n-7\n"), "no number"),
        (TEXT + "more\n", "three lines"),
        (TEXT.replace("AAEC", "AA=="), "no SHA-256"),
    ):
        with pytest.raises(ProofError, match=why):
            parse_checkpoint(text, origin="fedge.example/run")


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a+b", PUBLISHED_KEY.replace("c74f", "c74e"), PUBLISHED_KEY[:-4]),
        *(PUBLISHED_KEY + "=", PUBLISHED_KEY + "=="),
    ],
)
def test_a_key_whose_parts_do_not_agree_is_refused(text: str) -> None:
    with pytest.raises(ProofError, match="not a verifier key"):
        parse_key(text)
