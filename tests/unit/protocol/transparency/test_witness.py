"""A witness cosigns a log that only grows: every refusal, C2SP's example, split views at the quorum's bound."""

from __future__ import annotations

import base64
import contextlib
from itertools import product

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
    lines_naming,
    sign_note,
    verify_note,
)
from protocol.transparency.policy import Policy, simple_policy
from protocol.transparency.tree import Tree
from protocol.transparency.witness import (
    AddCheckpoint,
    Cosigned,
    Refused,
    Witnessed,
    consider,
    parse_add_checkpoint,
    witness_key,
)

ORIGIN = "fedge/run/0123"
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OWN = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
NOW = 1_790_000_000

# The request in C2SP tlog-witness; the log's key is not published with it.
PUBLISHED = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
\u2014 example.com/behind-the-sofa opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""


def log_key(key: Ed25519PrivateKey = LOG, name: str = ORIGIN) -> VerifierKey:
    return VerifierKey(name=name, type=KeyType.ED25519, public=key.public_key().public_bytes_raw())


def grown(count: int, salt: str = "") -> Tree:
    return Tree(
        leaf_hash(f"{salt if number > 3 else ''}{number}".encode()) for number in range(count)
    )


def signed(tree: Tree, size: int | None = None, key: Ed25519PrivateKey = LOG) -> str:
    size = tree.size if size is None else size
    text = Checkpoint(origin=ORIGIN, size=size, root=tree.root(size)).text
    return f"{text}\n{sign_note(text, ORIGIN, key)}"


def asked(tree: Tree, old: int, size: int | None = None) -> AddCheckpoint:
    size = tree.size if size is None else size
    return AddCheckpoint(old=old, path=tuple(tree.consistency(old, size)), note=signed(tree, size))


def answer(request: AddCheckpoint, latest: Witnessed | None = None) -> Cosigned | Refused:
    return consider(request, latest or Witnessed(), [log_key()], "w", OWN, time=NOW)


def at(tree: Tree, size: int) -> Witnessed:
    return Witnessed(size=size, root=tree.root(size))


def status(request: AddCheckpoint, latest: Witnessed | None = None) -> int:
    found = answer(request, latest)
    return found.status if isinstance(found, Refused) else 200


def test_the_published_request_is_read_and_written_alike() -> None:
    found = parse_add_checkpoint(PUBLISHED.encode())
    assert (found.old, len(found.path), found.claimed.size) == (20852014, 4, 20852163)
    assert found.claimed.origin == "example.com/behind-the-sofa"
    assert found.encode() == PUBLISHED.encode()
    unknown = consider(found, Witnessed(), [log_key()], "w", OWN, time=NOW)
    assert isinstance(unknown, Refused)
    assert unknown.status == 404
    strange = [log_key(LOG, "example.com/behind-the-sofa")]
    refused = consider(found, Witnessed(), strange, "w", OWN, time=NOW)
    assert isinstance(refused, Refused)
    assert refused.status == 403


@given(st.integers(0, 40), st.integers(0, 40))
def test_every_growth_is_cosigned_and_the_line_verifies(one: int, other: int) -> None:
    old, new = sorted((one, other))
    tree = grown(new)
    request = parse_add_checkpoint(asked(tree, old).encode())
    found = answer(request, at(tree, old))
    assert isinstance(found, Cosigned)
    assert found.latest == at(tree, new)
    own = witness_key("w", OWN)
    both = verify_note(request.note + found.line, [log_key(), own])
    assert both.by == {log_key().encode(): None, own.encode(): NOW}
    assert lines_naming(request.note + found.line, own) == [found.line]


def test_each_refusal_has_its_status() -> None:
    tree, fork = grown(9), grown(9, "x")
    good = asked(tree, 5)
    assert status(good, at(tree, 5)) == 200
    assert status(good, at(tree, 6)) == 409
    assert status(good, at(tree, 4)) == 409
    assert status(good) == 409
    assert status(AddCheckpoint(old=10, path=(), note=good.note), at(tree, 5)) == 400
    assert status(good, at(fork, 5)) == 422
    assert status(AddCheckpoint(old=5, path=good.path[:-1], note=good.note), at(tree, 5)) == 422
    extra = (*good.path, good.path[0])
    assert status(AddCheckpoint(old=5, path=extra, note=good.note), at(tree, 5)) == 422
    assert status(AddCheckpoint(old=0, path=good.path, note=good.note)) == 422
    forged = AddCheckpoint(old=0, path=(), note=signed(tree, key=OTHER))
    assert status(forged) == 403
    bent = good.note.replace("\n9\n", "\n8\n")
    assert status(AddCheckpoint(old=5, path=good.path, note=bent), at(tree, 5)) == 403


def test_a_conflict_says_how_far_the_witness_is() -> None:
    tree = grown(9)
    found = answer(asked(tree, 5), at(tree, 7))
    assert isinstance(found, Refused)
    assert (found.size, found.forked) == (7, False)


def test_a_fork_at_equal_size_is_refused_as_evidence() -> None:
    tree, fork = grown(9), grown(9, "x")
    assert status(asked(tree, 9), at(tree, 9)) == 200
    found = answer(asked(fork, 9), at(tree, 9))
    assert isinstance(found, Refused)
    assert (found.status, found.size, found.forked) == (409, None, True)


def test_a_log_never_goes_back() -> None:
    tree = grown(9)
    assert status(asked(tree, 4, 7), at(tree, 9)) == 409
    assert status(AddCheckpoint(old=9, path=(), note=signed(tree, 7)), at(tree, 9)) == 400


def test_an_empty_log_has_one_root() -> None:
    assert status(asked(grown(0), 0)) == 200
    text = Checkpoint(origin=ORIGIN, size=0, root=bytes(32)).text
    note = f"{text}\n{sign_note(text, ORIGIN, LOG)}"
    assert status(AddCheckpoint(old=0, path=(), note=note)) == 409


def test_a_witnesss_key_is_no_logs_key() -> None:
    tree = grown(3)
    text = Checkpoint(origin=ORIGIN, size=3, root=tree.root()).text
    note = f"{text}\n{cosign(text, ORIGIN, LOG, time=NOW)}"
    pinned = [witness_key(ORIGIN, LOG)]
    request = AddCheckpoint(old=0, path=(), note=note)
    found = consider(request, Witnessed(), pinned, "w", OWN, time=NOW)
    assert isinstance(found, Refused)
    assert found.status == 404


NODE = base64.b64encode(bytes(32)).decode()
NOTE = signed(grown(3))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        NOTE.encode(),
        f"old 0\n{NOTE}".encode(),
        f"old 00\n\n{NOTE}".encode(),
        f"old -1\n\n{NOTE}".encode(),
        f"old 0 \n\n{NOTE}".encode(),
        f"OLD 0\n\n{NOTE}".encode(),
        f"old 1\n{NODE[:-4]}\n\n{NOTE}".encode(),
        f"old 1\n{NODE[:-2]}B=\n\n{NOTE}".encode(),
        f"old 1\n{NODE}\r\n\n{NOTE}".encode(),
        f"old 1\nn\u00e4\n\n{NOTE}".encode(),
        ("old 1\n" + f"{NODE}\n" * 64 + f"\n{NOTE}").encode(),
        f"old 0\n\n{NOTE.replace(ORIGIN + chr(10), '', 1)}".encode(),
        f"old 0\n\n{NOTE.partition(chr(10) * 2)[0]}\n".encode(),
        f"old 0\n\n{NOTE.replace('=' + chr(10) * 2, '=' + chr(10) + 'more' + chr(10) * 2)}".encode(),
        f"old 0\n\n{NOTE}".encode() + b"x" * 100_000,
    ],
)
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(ProofError):
        parse_add_checkpoint(body)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(body: bytes) -> None:
    for data in (body, b"old 0\n\n" + body):
        with contextlib.suppress(ProofError):
            assert parse_add_checkpoint(data).encode() == data


class Crowd:
    """``count`` witnesses, of which the first ``lying`` cosign whatever they are shown."""

    def __init__(self, count: int, lying: int, quorum: int) -> None:
        seeds = [bytes([number + 50]) * 32 for number in range(count)]
        self._keys = [Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds]
        self._latest = [Witnessed() for _ in seeds]
        self._lying = lying
        keys = [witness_key(f"w{number}", key) for number, key in enumerate(self._keys)]
        self.policy: Policy = simple_policy(log_key(), keys, quorum)

    def line(self, number: int, request: AddCheckpoint) -> str:
        latest = Witnessed() if number < self._lying else self._latest[number]
        key = self._keys[number]
        found = consider(request, latest, [log_key()], f"w{number}", key, time=NOW)
        if isinstance(found, Refused):
            return ""
        self._latest[number] = found.latest
        return found.line


def split_view_possible(count: int, lying: int, quorum: int) -> bool:
    """Whether a log that asks each witness in its own order gets two trees through."""
    views = [asked(grown(9), 0), asked(grown(9, "x"), 0)]
    for first in product((0, 1), repeat=count):
        crowd = Crowd(count, lying, quorum)
        notes = [view.note for view in views]
        for number, start in enumerate(first):
            for view in (start, 1 - start):
                notes[view] += crowd.line(number, views[view])
        try:
            roots = {crowd.policy.verify_checkpoint(note).root for note in notes}
        except ProofError:
            continue
        if len(roots) == 2:
            return True
    return False


@pytest.mark.parametrize(
    ("count", "quorum", "tolerated"), [(1, 1, 0), (3, 2, 0), (4, 3, 1), (5, 4, 2)]
)
def test_two_views_need_more_liars_than_the_quorum_was_made_for(
    count: int, quorum: int, tolerated: int
) -> None:
    assert quorum > (count + tolerated) / 2
    assert not split_view_possible(count, tolerated, quorum)
    assert split_view_possible(count, tolerated + 1, quorum)
