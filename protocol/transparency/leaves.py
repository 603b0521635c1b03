"""The leaves of a run's log: what each kind holds. (P-8.6, P-8.7)

How they are written and read is :mod:`protocol.transparency.leaf_codec`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from protocol.privacy.ledger import Entry

Void = Literal["", "its sum could not be opened", "its sum is impossible"]  # why a round has none
UNOPENED: Void = "its sum could not be opened"
IMPOSSIBLE: Void = "its sum is impossible"
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ClientId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Clients = list[ClientId] | Sha256  # or the digest of a file with them: see lists (P-8.19)


def listed(clients: list[str] | str) -> list[str]:
    """Of a leaf that is whole: its lists are in it."""
    assert isinstance(clients, list)
    return clients


class Leaf(BaseModel):
    """What one leaf says. ``kind`` is its name in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    kind: ClassVar[str]


class Advert(Leaf):
    """A client's signed keys for one attempt."""

    kind: ClassVar[str] = "advert"
    group: Count
    advert: Hex


class Shares(Leaf):
    """A client's signed root over the shares it sealed; in a large cohort with its choice of holders."""

    kind: ClassVar[str] = "shares"
    client: ClientId
    xid: Sha256
    root: Sha256
    signature: Hex
    choice: Literal[""] | Sha256 = ""

    @model_serializer(mode="wrap")
    def _without_no_choice(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.choice else {k: v for k, v in values.items() if k != "choice"}


class Vector(Leaf):
    """A client's signed root over its masked vector of ``length`` bytes."""

    kind: ClassVar[str] = "vector"
    client: ClientId
    rid: Sha256
    root: Sha256
    length: Count
    signature: Hex


class Complaint(Leaf):
    """A client says that it was wronged; ``receipt`` is what it holds, if anything."""

    kind: ClassVar[str] = "complaint"
    client: ClientId
    about: Annotated[str, Field(max_length=500)]
    receipt: Annotated[str, Field(max_length=4000)]
    signature: Hex


class PlanLeaf(Leaf):
    """What the run is about."""

    kind: ClassVar[str] = "plan"
    origin: str
    run: ClientId
    plan: Sha256
    base: Sha256
    retention_days: Count


class Roster(Leaf):
    """Who may take part from here on."""

    kind: ClassVar[str] = "roster"
    root: Sha256
    clients: Count


class Cohort(Leaf):
    """Who advertised in an attempt (or one group of it), and their graph."""

    kind: ClassVar[str] = "cohort"
    seq: Count
    group: Count
    u1_root: Sha256
    graph_seed: Sha256
    degree: Count
    threshold: Count
    alive_index: Count | None
    xid: Sha256


class RoundOpen(Leaf):
    """Who shared, and the terms that all masks are bound to."""

    kind: ClassVar[str] = "round-open"
    seq: Count
    group: Count
    round: Count
    attempt: Count
    rid: Sha256
    xid: Sha256
    members: Annotated[list[ClientId], Field(min_length=1)] | Sha256
    terms: dict[str, Any]
    count: Count
    code: Sha256

    @property
    def ids(self) -> list[str]:
        """U2, of a leaf that is whole."""
        return listed(self.members)


class Alive(Leaf):
    """Whose vectors are in the sum, with their signatures where there is no witness."""

    kind: ClassVar[str] = "alive"
    seq: Count
    group: Count
    rid: Sha256
    clients: Clients
    signatures: dict[ClientId, Hex] | Sha256

    @property
    def ids(self) -> list[str]:
        """U3, of a leaf that is whole."""
        return listed(self.clients)

    @property
    def signed(self) -> dict[str, str]:
        """Signatures by id, of a leaf that is whole."""
        assert isinstance(self.signatures, dict)
        return self.signatures


class Reveal(Leaf):
    """One seed per member."""

    kind: ClassVar[str] = "reveal"
    seq: Count
    group: Count
    rid: Sha256
    seeds: dict[ClientId, Sha256] | Sha256
    boxes: Hex  # SHA-256 of the file, or empty

    @property
    def by_id(self) -> dict[str, str]:
        """Seeds by id, of a leaf that is whole."""
        assert isinstance(self.seeds, dict)
        return self.seeds


class Aggregate(Leaf):
    """The sum."""

    kind: ClassVar[str] = "aggregate"
    seq: Count
    group: Count
    rid: Sha256
    round: Count
    summands: Count
    sum: Sha256


class Spent(Leaf):
    """A line of the privacy ledger."""

    kind: ClassVar[str] = "dp"
    entry: Entry


class OpenedSum(Leaf):
    """A group's part in a round's adapter; ``rid`` is what its members know it by."""

    kind: ClassVar[str] = ""
    group: Count
    rid: Sha256
    summands: Count
    kept: bool


class Adapter(Leaf):
    """What a round made of its sums. Digests of adapters are P-2.4's; files are the subjects.

    ``void`` is empty or why the round has no sum.
    """

    kind: ClassVar[str] = "adapter"
    round: Count
    attempt: Count
    seq: Count
    adapter_in: Hex
    adapter_out: Sha256
    published: Sha256
    exchange: Literal["secagg", "plain"]
    sums: list[OpenedSum]
    void: Void


class AskedSum(Leaf):
    """A sum that clients were asked to open, of ``clients`` (U3): whoever asked may hold it."""

    kind: ClassVar[str] = ""
    group: Count
    rid: Sha256
    clients: Annotated[list[ClientId], Field(min_length=1)] | Sha256

    @property
    def ids(self) -> list[str]:
        """U3, of a leaf that is whole."""
        return listed(self.clients)


class Abort(Leaf):
    """An attempt that gave no sum; ``revealed``: what clients had been asked to open all the same.

    With a ``group``, only that group's sum is missing: others of the attempt were opened.
    """

    kind: ClassVar[str] = "abort"
    seq: Count
    group: Count | None
    round: Count
    attempt: Count
    revealed: list[AskedSum]


class Evaluation(Leaf):
    """How good a round's adapter is on some rows, in thousandths."""

    kind: ClassVar[str] = "eval"
    round: Count
    rows: Count
    metrics: dict[str, int]


class Release(Leaf):
    """A round's adapter became an artefact for devices."""

    kind: ClassVar[str] = "release"
    round: Count
    adapter: Count
    eval: Count | None


class Retention(Leaf):
    """A round's masked vectors were deleted."""

    kind: ClassVar[str] = "retention"
    round: Count
    vectors: Count


class Audit(Leaf):
    """An auditor's verdict on the log's first ``size`` leaves."""

    kind: ClassVar[str] = "audit"
    size: Count
    verdict: Literal["ok", "unverifiable", "failed"]
    rounds: dict[Annotated[str, Field(pattern=r"^[0-9]+$")], str]
    tool: str
    auditor: Sha256  # its raw Ed25519 public key


class Request(Leaf):
    """A client of run ``sid``, whose log is ``origin``, withdraws its consent. (P-8.18)"""

    kind: ClassVar[str] = ""
    client: ClientId
    origin: Annotated[str, Field(max_length=400)]
    sid: Sha256
    signature: Hex


class RoundAdapter(Leaf):
    """A round with its adapter's digest."""

    kind: ClassVar[str] = ""
    round: Count
    adapter: Sha256


class Withdrawal(Leaf):
    """A client's request and its effect: how many rounds, sums, adapters, releases hold its update.

    ``first`` is the first such round, ``before`` the last adapter without it.
    """

    kind: ClassVar[str] = "withdrawal"
    request: Request
    first: Count | None
    rounds: Count
    asked: Count
    adapters: Count
    releases: Count
    before: RoundAdapter


class Pad(Leaf):
    """Nothing, so that the next leaf lands on its index."""

    kind: ClassVar[str] = "pad"
