"""Nothing of a client and no secret is in anything that a run publishes. (P-8, AU-7)

Canaries are planted in the rows; keys, seeds, updates and per-client metrics are caught where they are
made. Then everything that ``fedge audit export`` copies, and the report, is searched: as it is, in hex,
in base64 at every alignment, and inside the leaves' own base64.
"""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.export import export
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from client.secret import Member
from protocol.exchange import Contribution
from protocol.secagg import client as core
from protocol.secagg import shamir
from protocol.tasks.classification import METRICS
from protocol.transparency.tiles import parse_entries
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate

CANARY = "Xylomarzipan"
SETTINGS = [
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=4",
    "plan.rounds=2",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


class Caught:
    """What must stay where it was made."""

    def __init__(self) -> None:
        self.states: list[core.Advertised] = []
        self.given: list[Contribution] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        advertise, mask = core.advertise, Member._mask

        def advertising(*args: Any, **named: Any) -> Any:
            state, reply = advertise(*args, **named)
            self.states.append(state)
            return state, reply

        def masking(member: Member, request: Any, instruction: Any, state: Any, give: Any) -> Any:
            def caught() -> Contribution:
                given = give()
                self.given.append(replace(given, update=given.update.copy()))
                return given

            return mask(member, request, instruction, state, caught)

        patch.setattr(core, "advertise", advertising)
        patch.setattr(Member, "_mask", masking)


@pytest.fixture(scope="module")
def run(experiment_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Caught]:
    folder = tmp_path_factory.mktemp("canaries")
    for path in experiment_file.parent.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for number in range(0, len(rows), 9):
        rows[number]["text"] += f" {CANARY}{number}"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    caught = Caught()
    with pytest.MonkeyPatch.context() as patch:
        caught.install(patch)
        experiment = load_experiment(folder / experiment_file.name, SETTINGS)
        simulate(experiment, folder / "run", resume=False, progress=NoProgress())
    return folder / "run", caught


@pytest.fixture(scope="module")
def published(run: tuple[Path, Caught], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Everything a stranger gets, decoded as far as it can be."""
    out = tmp_path_factory.mktemp("bundle")
    export(load_run(Folder(run[0]), Trust()), out)
    shutil.copy(run[0] / "report.html", out / "report.html")
    return b"\x00".join(
        b"\x00".join(views(path)) for path in sorted(out.rglob("*")) if path.is_file()
    )


def views(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if "entries" in path.parts:
        for entry in parse_entries(data):
            value = json.loads(entry)
            if "payload" in value:
                yield base64.b64decode(value["payload"])


def forms(secret: bytes) -> list[bytes]:
    """How ``secret`` may be written; of base64 every character that the secret alone decides.

    Fewer characters would be found by chance: four of them are in any megabyte of base64.
    """
    found = [secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode()]
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        found.append(text[-(-8 * shift // 6) : 8 * (shift + len(secret)) // 6])
    return found


def holds(data: bytes, secret: bytes) -> bool:
    return any(form in data for form in forms(secret))


def test_the_search_finds_what_is_published_on_purpose(
    run: tuple[Path, Caught], published: bytes
) -> None:
    folder, caught = run
    seeds = [shamir.to_bytes(state.self_seed) for state in caught.states]
    assert sum(holds(published, seed) for seed in seeds) == 12  # six clients, two rounds
    assert holds((folder / "clients/client-0000.key").read_bytes(), client_key(folder, 0))
    private = b"".join(path.read_bytes() for path in (folder / "clients").glob("*.jsonl"))
    assert CANARY.encode() in private
    for before in (b"", b"?", b"??"):
        assert holds(base64.b64encode(before + seeds[0] + b"!"), seeds[0])


def client_key(folder: Path, number: int) -> bytes:
    return bytes.fromhex((folder / f"clients/client-{number:04d}.key").read_text().strip())


def test_no_row(published: bytes) -> None:
    assert CANARY.encode() not in published
    assert CANARY.lower().encode() not in published.lower()


def test_no_key(run: tuple[Path, Caught], published: bytes) -> None:
    folder, caught = run
    keys = [client_key(folder, number) for number in range(6)]
    keys.append(bytes.fromhex((folder / "log.key").read_text().strip()))
    keys += [state.channel_secret for state in caught.states]
    assert not [key for key in keys if holds(published, key)]


def test_of_every_client_and_attempt_one_seed_at_most(
    run: tuple[Path, Caught], published: bytes
) -> None:
    for state in run[1].states:
        seeds = (state.self_seed, state.mask_seed)
        assert sum(holds(published, shamir.to_bytes(seed)) for seed in seeds) <= 1
        assert not holds(published, shamir.to_bytes(state.mask_seed))  # nobody was lost


def test_no_update_and_no_metric_of_one_client(run: tuple[Path, Caught], published: bytes) -> None:
    given = run[1].given
    assert len(given) == 12
    for one in given:
        update = np.ascontiguousarray(one.update, "<f4")
        nonzero = np.flatnonzero(update)
        at = int(nonzero[len(nonzero) // 2])
        assert not holds(published, update[at : at + 4].tobytes())
        assert not holds(published, update.astype("<f8")[at : at + 4].tobytes())
        for name in METRICS:
            value = one.metrics[name]
            if value and value != round(value):  # whole numbers are everywhere
                assert not holds(published, struct.pack("<d", value))
                assert repr(value).encode() not in published


def test_no_leaf_has_a_field_for_what_is_a_clients_own(run: tuple[Path, Caught]) -> None:
    """Metrics appear as the sums of a round, in ``release.json`` and nowhere else."""
    entries = load_run(Folder(run[0]), Trust()).copy.entries
    assert len(entries) > 40
    for entry in entries:
        value = json.loads(entry)
        if "payload" in value:
            value = json.loads(base64.b64decode(value["payload"]))
        assert not set(keys_in(value)) & {*METRICS, "loss", "accuracy_local", "weight"}


def keys_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from keys_in(inner)
