"""What a site's updates are in: rounds, adapters, releases, over runs that go on from one another. (P-8.18)

By the logs' alive sets and digests; whether a log's sums hold is for :mod:`audit.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from audit.continued import check_start
from audit.openings import sums_asked
from audit.published import Run, adapter_path
from audit.report import Findings
from audit.withdrawals import check_withdrawals, effect_at
from protocol.errors import ArtefactError, ProofError
from protocol.misspelling import nearest
from protocol.transparency.leaves import RoundAdapter
from protocol.transparency.withdrawal import Effect, HeldSum


@dataclass(frozen=True, kw_only=True)
class Origin:
    """An adapter to go on from: its round, digest, folder; how many clients are free to, and the command."""

    round: int
    adapter: str
    folder: str
    free: int
    command: str


@dataclass(frozen=True, kw_only=True)
class TouchedAdapter:
    """A release leaf with its files (SHA-256 by name), of a round that descends from the site."""

    leaf: int
    round: int
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Touched:
    """Of one run. ``start`` is its start where that descends from the site in a run before.

    ``unknown_start``: it goes on from a run that was not given. ``before`` is the last adapter without the
    site's updates, ``again`` one before that which all clients but the site are free to go on from.
    """

    where: str
    origin: str
    clients: dict[str, str]  # names by id
    sums: tuple[HeldSum, ...]
    asked: tuple[HeldSum, ...]
    adapters: tuple[RoundAdapter, ...]
    releases: tuple[TouchedAdapter, ...]
    withdrawals: tuple[int, ...]
    quorum: int
    start: dict[str, Any] | None
    unknown_start: str
    before: Origin | None
    again: Origin | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        adapters = [each.model_dump() for each in self.adapters]
        return {name: adapters if name == "adapters" else value for name, value in self._plain()}

    def _plain(self) -> Iterator[tuple[str, Any]]:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple) and name != "adapters":
                value = [each if isinstance(each, int) else asdict(each) for each in value]
            elif isinstance(value, Origin):
                value = asdict(value)
            yield name, value


def touched_by(runs: Sequence[Run], site: str) -> list[Touched]:
    """What the site (its name in a roster, or its id) has touched of each run, earlier runs first.

    Raises ProofError for a log that is not in order or names no clients, ArtefactError for an unknown site.
    """
    for run in runs:
        _verify(run)
    rosters = [_names(run) for run in runs]
    if not any(_clients(names, site) for names in rosters):
        close = nearest(site, sorted({name for names in rosters for name in names.values()}))
        raise ArtefactError(
            f"{site[:80]} is in no roster of {'this run' if len(runs) == 1 else 'these runs'}",
            f"did you mean {close}?" if close else "name a site of rosters/, or its id",
        )
    ordered = sorted(runs, key=lambda run: len(run.plan.start.plans) if run.plan.start else 0)
    effects: dict[str, tuple[Run, Effect, bool]] = {}  # by plan: of a plan there is one run
    touched = []
    for run in ordered:
        clients = _clients(_names(run), site)
        effect = effect_at(run, clients.keys())
        start = run.plan.start
        earlier = effects.get(start.plans[-1]) if start else None
        descends = False
        if start and earlier:
            before, touching, all_of_it = earlier
            check_start(run, before, start)
            descends = all_of_it or touching.touches(start.round)
        effects[run.plan_digest] = run, effect, descends
        touched.append(
            _touched(run, clients, effect, descends, unknown=bool(start and not earlier))
        )
    return touched


def _verify(run: Run) -> None:
    """As the audit does it: order, rosters, withdrawals; not the sums. Raises ProofError."""
    faults = [fault.what for fault in run.log.faults]
    findings = Findings()
    check_withdrawals(run, findings)
    for fault in (*faults, *findings.faults):
        raise ProofError(f"{run.source.where}: {fault}", "`fedge audit verify` says all of it")
    if not run.log.rosters:
        raise ProofError(
            f"{run.source.where}: updates of this run went in clear: its log names no client",
            "the coordinator's records, rounds/NNNN/record.json, are all that says who was used",
        )


def _names(run: Run) -> dict[str, str]:
    """Every client of every roster: its latest name by its id in hex."""
    return {
        client.hex(): name
        for roster in run.log.rosters
        for client, name in run.members(roster.index + 1)[1].names.items()
    }


def _clients(names: dict[str, str], site: str) -> dict[str, str]:
    """A site may have had several keys under its name: those of them, by id."""
    return {client: name for client, name in names.items() if site in (client, name)}


def _touched(
    run: Run, clients: dict[str, str], effect: Effect, descends: bool, *, unknown: bool
) -> Touched:
    start, first = run.plan.start, 0 if descends else effect.first
    rounds = run.log.rounds if first is not None else []
    numbers = {each.number for each in rounds if each.number >= (first or 0)}
    return Touched(
        where=run.source.where,
        origin=run.copy.checkpoint.origin,
        clients=clients,
        sums=effect.sums,
        asked=effect.asked,
        adapters=tuple(
            RoundAdapter(round=each.number, adapter=each.adapter.leaf.adapter_out)
            for each in rounds
            if each.number in numbers
        ),
        releases=tuple(
            TouchedAdapter(leaf=placed.index, round=placed.leaf.round, files=placed.subjects)
            for placed in run.log.releases
            if placed.leaf.round in numbers
        ),
        withdrawals=tuple(
            placed.index for placed in run.log.withdrawals if placed.leaf.request.client in clients
        ),
        quorum=run.plan.cohort.quorum,
        start=start.model_dump(mode="json") if start and descends else None,
        unknown_start=f"round {start.round} of {start.origin}" if start and unknown else "",
        before=None if descends or effect.before is None else _origin(run, clients, effect.before),
        again=None if descends else _again(run, clients, effect),
    )


def _origin(run: Run, clients: dict[str, str], adapter: RoundAdapter) -> Origin:
    """Free are those of the last roster, without the site, who may open a sum of this adapter. (P-6.10)"""
    asked = [each.clients for each in sums_asked(run) if each.adapter == adapter.adapter]
    members = {client.hex() for client in run.members(run.copy.checkpoint.size)[1].names}
    left = members - clients.keys()
    again = asked and not any(clients.keys() & each for each in asked)
    # Round 0 is begun anew, with another seed: an adapter of which nobody has opened a sum.
    anew = adapter.round == 0 and run.plan.start is None
    free = len(left if anew else left.difference(*asked))
    if again and not anew:
        free = max(free, *map(len, asked))  # the very same clients once more
    folder = f"{run.source.where}/{adapter_path(adapter.round, '').rstrip('/')}"
    seed = f" --seed {run.plan.seed + 1}" if again or anew else ""
    return Origin(
        round=adapter.round,
        adapter=adapter.adapter,
        folder=folder,
        free=free,
        command=f"fedge plan continue {folder} --rounds {run.plan.rounds}{seed} --out more.toml",
    )


def _again(run: Run, clients: dict[str, str], effect: Effect) -> Origin | None:
    """The last adapter before, other than `before`, of which no sum was asked for that holds the site."""
    first, before = effect.first, effect.before
    if first is None or before is None or before.round == 0:
        return None
    held = {each.adapter for each in sums_asked(run) if clients.keys() & each.clients}
    for earlier in reversed(run.log.rounds[:first]):
        leaf = earlier.adapter.leaf
        if leaf.adapter_out not in held:
            return _origin(run, clients, RoundAdapter(round=leaf.round, adapter=leaf.adapter_out))
    return None


def touched_lines(touched: Touched) -> Iterator[str]:
    """The same for people."""
    who = ", ".join(f"{name} ({client})" for client, name in sorted(touched.clients.items()))
    yield f"{touched.origin}: {who or 'not in its rosters'}"
    yield from (f"  withdrew by leaf {index}" for index in touched.withdrawals)
    if touched.unknown_start:
        yield f"  goes on from {touched.unknown_start}: name that run too, to see what comes from there"
    if touched.start is not None:
        number, origin = touched.start["round"], touched.start["origin"]
        yield f"  goes on from round {number} of {origin}, which descends from it"
    yield from (
        f"  asked for in vain in round {held.round} (group {held.group}): the coordinator may hold this sum"
        for held in touched.asked
    )
    if not touched.adapters:
        yield "  nothing touched: no adapter holds an update of it"
        return
    rounds = dict.fromkeys(held.round for held in touched.sums)
    yield f"  in the sums of rounds {', '.join(map(str, rounds)) or 'none'}"
    yield from (f"  adapter of round {each.round:<4} {each.adapter}" for each in touched.adapters)
    for release in touched.releases:
        yield f"  release of round {release.round}, leaf {release.leaf}"
        yield from (f"    {digest}  {name}" for name, digest in sorted(release.files.items()))
    yield from _origin_lines(touched)


def _origin_lines(touched: Touched) -> Iterator[str]:
    before, again = touched.before, touched.again
    if before is None:
        return
    yield f"  the last adapter before: round {before.round}, {before.adapter}, in {before.folder}"
    short = before.free < touched.quorum
    yield (
        f"  {before.free} clients are free to go on from it, the quorum is {touched.quorum}"
        + ("" if short else f": {before.command}")
    )
    if short and again is not None:
        yield (
            "  of it the others have opened a sum with this site, and open no other (P-6.10); they can go on "
            f"from round {again.round}, {again.adapter}, whose sum they repeat: {again.command}"
        )
    if short and again is None:
        yield (
            "  of each adapter of this run the others have opened a sum with this site, and open no other: "
            "go on from one of the run before, or begin anew"
        )
