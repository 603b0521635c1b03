"""Whom to believe about a log: its key, its witnesses, and how many of them. (P-8.12)

Text form: C2SP tlog-policy. A checkpoint is valid when a listed log signed it and the quorum cosigned it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.errors import ProofError
from protocol.plan_sections import Audit
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    parse_checkpoint,
    parse_key,
    verify_note,
)

NONE = "none"
REMEDY = "correct the policy, or get it again from who runs the log"
MOST_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class Policy:
    """``groups`` maps a name to (how many, of which names); ``quorum`` is a name, or "none"."""

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, VerifierKey] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    quorum: str = NONE

    def verify_checkpoint(self, note: str) -> Checkpoint:
        """The checkpoint of a signed note. Raises ProofError unless log and quorum have signed it."""
        signed = verify_note(note, [*self.logs, *self.witnesses.values()])
        by = [log for log in self.logs if log.encode() in signed.by]
        if not by:
            raise ProofError("no log of the policy has signed the checkpoint", REMEDY)
        checkpoint = parse_checkpoint(signed.text, origin=by[0].name)
        if self.quorum != NONE and not self._met(self.quorum, set(signed.by)):
            names = [name for name, key in self.witnesses.items() if key.encode() in signed.by]
            raise ProofError(
                f"witnesses {', '.join(names) or 'none'} cosigned: no quorum",
                "ask for the checkpoint again once more witnesses have seen it",
            )
        return checkpoint

    def render(self) -> str:
        """The policy's text."""
        lines = [f"log {log.encode()}" for log in self.logs]
        lines += [f"witness {name} {key.encode()}" for name, key in self.witnesses.items()]
        lines += [f"group {name} {k} {' '.join(of)}" for name, (k, of) in self.groups.items()]
        return "\n".join([*lines, f"quorum {self.quorum}"]) + "\n"

    def _met(self, name: str, signed: set[str]) -> bool:
        if name in self.witnesses:
            return self.witnesses[name].encode() in signed
        least, members = self.groups[name]
        return sum(self._met(member, signed) for member in members) >= least


def simple_policy(log: VerifierKey, witnesses: Sequence[VerifierKey], quorum: int) -> Policy:
    """One log and ``quorum`` of ``witnesses``, 0 for none. Raises ProofError for a repeated key."""
    named = {f"w{number}": key for number, key in enumerate(witnesses, start=1)}
    policy = Policy(
        logs=(log,),
        witnesses=named,
        groups={"all": (quorum, tuple(named))} if quorum else {},
        quorum="all" if quorum else NONE,
    )
    return parse_policy(policy.render())


def policy_of(audit: Audit) -> Policy:
    """What a plan's audit section says of the log. Raises ProofError, also for a quorum of half or less."""
    count, quorum = len(audit.witnesses), audit.witness_quorum
    if not count < 2 * quorum <= 2 * count:
        raise ProofError(f"{quorum} of {count} witnesses: two quorums may share none", REMEDY)
    log, witnesses = parse_key(audit.log), [parse_key(key) for key in audit.witnesses]
    if any(key.public == log.public for key in witnesses):
        raise ProofError("the log's key is one of its witnesses'", REMEDY)
    return simple_policy(log, witnesses, quorum)


def parse_policy(text: str) -> Policy:
    """Read a policy. Raises ProofError that names the line."""
    logs: list[VerifierKey] = []
    witnesses: dict[str, VerifierKey] = {}
    groups: dict[str, tuple[int, tuple[str, ...]]] = {}
    quorum, used = "", set[str]()
    lines = text.split("\n")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", text) or len(lines) > MOST_LINES:
        raise ProofError("the policy has control characters or too many lines", REMEDY)
    for number, line in enumerate(lines, start=1):
        words = re.split(r"[ \t]+", line.strip(" \t"))
        if not words[0] or words[0].startswith("#"):
            continue
        names = {*witnesses, *groups}
        match words:
            case ["log", key, *_] if len(words) <= 3:
                logs.append(_key(key, KeyType.ED25519, logs, number))
            case ["witness", name, key, *_] if len(words) <= 4 and _new(name, names):
                kept = list(witnesses.values())
                witnesses[name] = _key(key, KeyType.COSIGNATURE, kept, number)
            case ["group", name, least, *members] if members and _new(name, names):
                count = {"all": len(members), "any": 1}.get(least) or _count(least)
                free = len(set(members)) == len(members) and not used & set(members)
                if not free or not set(members) <= names or not 1 <= count <= len(members):
                    raise _bad(number)
                used |= set(members)
                groups[name] = (count, tuple(members))
            case ["quorum", name] if not quorum and (name == NONE or name in names):
                quorum = name
            case _:
                raise _bad(number)
    if not logs or not quorum:
        raise ProofError("the policy names no log or no quorum", REMEDY)
    return Policy(logs=tuple(logs), witnesses=witnesses, groups=groups, quorum=quorum)


def _key(text: str, kind: KeyType, keys: Sequence[VerifierKey], number: int) -> VerifierKey:
    verifier = parse_key(text)
    if verifier.type is not kind or any(key.public == verifier.public for key in keys):
        raise _bad(number)
    return verifier


def _new(name: str, names: set[str]) -> bool:
    return name != NONE and name not in names


def _count(text: str) -> int:
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,4}", text) else 0


def _bad(number: int) -> ProofError:
    return ProofError(f"the policy's line {number} is not understood or not allowed", REMEDY)
