"""What a client holds between the phases of an attempt, and what it insists on. (P-6.7)"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from protocol.secagg.agreement import End, Keys
from protocol.secagg.contexts import attempt_context

STOP = "the coordinator is faulty or dishonest: nothing was revealed; ask its operator"


class Policy(BaseModel):
    """What this client insists on, whatever the coordinator says.

    ``roster`` maps ids to raw Ed25519 public keys; ``minimum`` is the smallest sum that may be revealed,
    ``maximum`` the largest cohort: what a plan rests on holds for no larger one.
    ``log_policy`` (C2SP tlog-policy) makes it insist on alive sets in a witnessed log; empty: on signatures.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="hex", val_json_bytes="hex")

    roster: dict[bytes, bytes]
    minimum: int
    maximum: int = 2**16 - 1  # all that a cohort's head can count (P-6.5)
    log_policy: str = ""


class State(BaseModel):
    """Secrets of one attempt. Never logged; deleted when the attempt ends."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    def __repr__(self) -> str:
        """The type alone: a state in a log or an exception shows nothing."""
        return f"<{type(self).__name__}>"

    __str__ = __repr__


class Advertised(State):
    """Keys are drawn and published."""

    keys: Keys = Keys.X25519
    sid: bytes
    seq: int
    client: bytes
    self_seed: int
    mask_seed: int
    channel_secret: bytes
    advert: bytes

    def end(self, xid: bytes) -> End:
        """This client's end of its agreements in a cohort."""
        return self.keys.end(
            client=self.client,
            attempt=attempt_context(self.sid, self.seq),
            xid=xid,
            mask_seed=self.mask_seed,
            channel_secret=self.channel_secret,
        )


class Shared(State):
    """The seeds are shared with the neighbours: those that hold this client's shares.

    ``channel_keys`` open what each of them sealed (:meth:`protocol.secagg.agreement.End.opener`);
    of their public mask keys the X25519 part is kept.
    """

    before: Advertised
    xid: bytes
    clients: tuple[bytes, ...]  # U1
    neighbours: tuple[bytes, ...]
    threshold: int
    alive_index: int
    channel_keys: dict[bytes, bytes]
    mask_keys: dict[bytes, bytes]


class Opened(State):
    """The shares that others gave are open; ``held`` are those of (self seed, mask seed).

    ``pairs`` are the secrets that masks with each neighbour come from.
    """

    before: Shared
    rid: bytes
    members: tuple[bytes, ...]  # U2
    held: dict[bytes, tuple[int, int]]
    pairs: dict[bytes, bytes]


class Masked(State):
    """The masked vector is out. Of this client's own secrets nothing is left: nobody needs them."""

    client: bytes
    clients: tuple[bytes, ...]  # U1
    members: tuple[bytes, ...]  # U2
    threshold: int
    alive_index: int
    rid: bytes
    held: dict[bytes, tuple[int, int]]
    holders: tuple[
        bytes, ...
    ] = ()  # of its own shares; of a state that an earlier fedge kept: see held


class Agreed(State):
    """This client has signed one alive set, or found it at its place in the log."""

    before: Masked
    alive: tuple[bytes, ...]  # U3
