"""What a run puts into its log, leaf by leaf. (P-8.7, P-8.8)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.encoding import canonical_json
from protocol.errors import ProofError
from protocol.manifest import MANIFEST_NAME
from protocol.merkle import merkle_root
from protocol.plan import Plan
from protocol.privacy.ledger import Entry
from protocol.secagg.witnessed import encode_by_log
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    AskedSum,
    Leaf,
    OpenedSum,
    Pad,
    PlanLeaf,
    Retention,
    Roster,
    RoundOpen,
    Spent,
    Vector,
)
from protocol.transparency.lists import of_asked
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import policy_of
from protocol.transparency.sum_leaves import SumPlace, after_alive, alive_leaf, before_alive
from server.log import RunLog, code_digest
from server.secret_sum import SecretSum
from server.store import PLAN, ROSTERS, Number, Record, RunStore
from server.witnessing import cosigned_by
from storage.regular import sha256_of

if TYPE_CHECKING:
    from server.setting import Setting

DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Published:
    """An attempt's number, the leaves of its sums, of what failed, and each sum's part in the adapter."""

    seq: int = 0
    leaves: list[bytes] = field(default_factory=list)
    aborts: list[bytes] = field(default_factory=list)
    sums: list[OpenedSum] = field(default_factory=list)


def publish_sum(store: RunStore, number: int, secret_sum: SecretSum) -> None:
    """Keep what auditors need of a sum that opened; forget the vectors of one that did not."""
    if secret_sum.words is None:
        store.forget_vectors(number, secret_sum.group)
        return
    little = secret_sum.words.astype(secret_sum.words.dtype.newbyteorder("<"))
    store.put_sum(number, f"{secret_sum.group}.sum", little.tobytes())
    if boxes := _boxes(secret_sum):
        store.put_sum(number, f"{secret_sum.group}.boxes.json", boxes)


def _boxes(secret_sum: SecretSum) -> bytes:
    boxes = secret_sum.core.boxes()
    return canonical_json([box.model_dump() for box in boxes]) if boxes else b""


def sum_leaves(
    log: RunLog, secret_sum: SecretSum, *, number: int, attempt: int, witnessed: bool
) -> list[bytes]:
    """The leaves of a sum that opened; under witnesses those up to its vectors are logged already."""
    transcript, boxes = secret_sum.core.transcript(), _boxes(secret_sum)
    place = _place(secret_sum, number, attempt, sha256(boxes) if boxes else "")
    rid = secret_sum.core.rid.hex()
    last = after_alive(transcript, place, rid, log.write, log.keep_list)
    if witnessed:
        return last
    return [
        *before_alive(transcript, place, log.write, log.keep_list),
        _alive(log, secret_sum),
        *last,
    ]


def _place(secret_sum: SecretSum, number: int, attempt: int, boxes: str = "") -> SumPlace:
    return SumPlace(
        group=secret_sum.group, round=number, attempt=attempt, code=code_digest(), boxes=boxes
    )


def _alive(log: RunLog, secret_sum: SecretSum) -> bytes:
    leaf = alive_leaf(
        seq=secret_sum.core.seq,
        group=secret_sum.group,
        rid=secret_sum.core.rid,
        alive=secret_sum.core.alive,
        signatures=secret_sum.core.signatures,
        keep=log.keep_list,
    )
    return log.write(leaf, {"round": secret_sum.core.rid.hex()})


def log_alive_sets(
    setting: Setting, sums: Sequence[SecretSum], number: int, attempt: int
) -> dict[int, bytes]:
    """Log the alive sets at their places, get the quorum's cosignatures; a proof for each group.

    Raises ProofError without a quorum: then nobody opens anything. (P-6.16)
    """
    log, plan = setting.log, setting.plan
    possible = [secret_sum for secret_sum in sums if secret_sum.failure is None]
    pad = log.write(Pad(), {"plan": plan.digest})
    leaves = [pad if secret_sum.failure else _alive(log, secret_sum) for secret_sum in sums]
    for secret_sum in possible:
        transcript = secret_sum.core.transcript()
        leaves += before_alive(
            transcript, _place(secret_sum, number, attempt), log.write, log.keep_list
        )
    start = log.append(leaves)
    policy = policy_of(plan.audit)
    note, faults = cosigned_by(setting.witnesses, log, policy)
    try:
        policy.verify_checkpoint(note)
    except ProofError as error:
        why = "; ".join(faults) or "none answered"
        raise ProofError(f"{error.cause} ({why})", "start the witnesses, then resume") from None
    log.cosigned(note)
    return {each.group: _opening(log, each, note, start + each.group) for each in possible}


def _opening(log: RunLog, secret_sum: SecretSum, note: str, index: int) -> bytes:
    """What lets members of a sum see its alive set at ``index`` under the checkpoint of ``note``."""
    path = tuple(log.tree.inclusion(index))
    proof = OfflineProof(index=index, path=path, checkpoint=note, extra=log.entry(index))
    core = secret_sum.core
    return encode_by_log(proof.encode().encode(), core.alive, complete=core.is_complete)


def start_leaves(
    log: RunLog, store: RunStore, plan: Plan, roster: Mapping[str, bytes]
) -> list[bytes]:
    """The plan, and the roster where there is one."""
    leaf = PlanLeaf(
        origin=log.origin,
        run=store.run_id.hex(),
        plan=plan.digest,
        base=plan.base.fingerprint,
        retention_days=plan.audit.retention_days,
    )
    files = {name: sha256_of(store.folder / name) for name in (PLAN, MANIFEST_NAME)}
    return [log.write(leaf, files), *roster_leaves(log, store, roster)]


def roster_leaves(log: RunLog, store: RunStore, roster: Mapping[str, bytes]) -> list[bytes]:
    """The roster, when the log's last one is another."""
    if not roster:
        return []
    root = store.keep_roster(roster)
    logged = log.last(Roster)
    if logged is not None and getattr(_read(log, logged), "root", "") == root:
        return []
    name = f"{ROSTERS}/{root}.json"
    data = (store.folder / name).read_bytes()
    return [log.write(Roster(root=root, clients=len(roster)), {name: sha256(data)})]


def spent_leaves(log: RunLog, store: RunStore) -> list[bytes]:
    """Every line of the privacy ledger that is not logged yet."""
    return [spent_leaf(log, entry) for entry in store.ledger.since(log.count(Spent))]


def spent_leaf(log: RunLog, entry: Entry) -> bytes:
    """A line of the privacy ledger. Raises ValueError where its names have no room in a leaf. (P-8.5)"""
    subject = {"privacy.jsonl": sha256(canonical_json(entry.model_dump()))}
    return log.write(Spent(entry=entry), subject)


def abort_leaf(
    log: RunLog,
    plan_digest: str,
    number: Number,
    *,
    revealed: Sequence[AskedSum],
    group: int | None = None,
) -> bytes:
    """An attempt, or a group of it, that gave no sum; ``revealed`` are those that were asked for."""
    leaf = Abort(
        seq=number.seq,
        group=group,
        round=number.round,
        attempt=number.attempt,
        revealed=of_asked(revealed, log.keep_list),
    )
    return log.write(leaf, {"plan": plan_digest})


def failed_leaves(setting: Setting, number: Number, sums: Sequence[SecretSum]) -> list[bytes]:
    """`abort` of each group whose sum failed while others opened."""
    return [
        abort_leaf(
            setting.log,
            setting.plan_digest,
            number,
            revealed=asked_sums([secret_sum]),
            group=secret_sum.group,
        )
        for secret_sum in sums
        if secret_sum.mean is None
    ]


def asked_sums(sums: Iterable[SecretSum]) -> list[AskedSum]:
    """Those of ``sums`` that clients are asked to open, or were."""
    return [
        AskedSum(
            group=secret_sum.group,
            rid=secret_sum.core.rid.hex(),
            clients=[client.hex() for client in secret_sum.core.alive],
        )
        for secret_sum in sums
        if secret_sum.asked
    ]


def killed_leaves(log: RunLog, store: RunStore, plan: Plan) -> list[bytes]:
    """What the attempt of a killed coordinator leaves: every number ends in sums or an `abort`."""
    last = store.last_number()
    if (
        plan.secrecy.exchange != "secagg"
        or not last.seq
        or log.find(Adapter, seq=last.seq)
        or log.find(Abort, seq=last.seq, group=None)
    ):
        return []
    revealed = store.revealing(last.round).get(last.seq, [])
    return [*spent_leaves(log, store), abort_leaf(log, plan.digest, last, revealed=revealed)]


def adapter_leaf(
    log: RunLog, record: Record, published: Published, files: Mapping[str, str]
) -> bytes:
    """What a round made of its sums."""
    leaf = Adapter(
        round=record["round"],
        attempt=record["attempt"],
        seq=published.seq,
        adapter_in=record["adapter_in"],
        adapter_out=record["adapter_out"],
        published=record["adapter_published"],
        exchange=record["exchange"],
        sums=published.sums,
        void=record["void"] or "",
    )
    return log.write(leaf, files)


def retire_vectors(log: RunLog, store: RunStore, plan: Plan, now: float) -> list[int]:
    """Delete masked vectors older than the plan keeps them, with a leaf that says so; the rounds."""
    retired = []
    for number, since in store.with_vectors():
        if now < since + plan.audit.retention_days * DAY_S:
            break  # those of later rounds were published later
        if not log.find(Retention, round=number):
            roots = _vector_roots(log, number)
            leaf = Retention(round=number, vectors=len(roots))
            log.append([log.write(leaf, {"vectors": merkle_root(roots).hex()})])
        store.drop_vectors(number)
        retired.append(number)
    return retired


def _vector_roots(log: RunLog, number: int) -> list[bytes]:
    """The signed roots of the vectors in a round's sums, by group and id."""
    ends = log.find(Adapter, round=number)
    adapters = (_read(log, at) for at in ends)
    sums = {(a.seq, s.group) for a in adapters if isinstance(a, Adapter) for s in a.sums}
    before = log.find(
        Adapter, round=number - 1
    )  # a round's vectors stand between two `adapter` leaves
    opened = (_read(log, at) for at in log.find(RoundOpen, round=number))
    group = {
        leaf.rid: leaf.group
        for leaf in opened
        # Under witnesses the log also has attempts whose sums were not opened.
        if isinstance(leaf, RoundOpen) and (leaf.seq, leaf.group) in sums
    }
    since, stop = max(before, default=0), max(ends, default=0)
    leaves = (_read(log, at) for at in log.find(Vector, since=since) if at < stop)
    vectors = [leaf for leaf in leaves if isinstance(leaf, Vector) and leaf.rid in group]
    ordered = sorted(vectors, key=lambda leaf: (group[leaf.rid], leaf.client))
    return [bytes.fromhex(leaf.root) for leaf in ordered]


def _read(log: RunLog, index: int) -> Leaf:
    return decode_leaf(log.entry(index)).leaf
