"""Laws of delivery: rollouts only grow, and no order of events makes a device serve what it must not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.store import Installed, State, Store, read_state, release_folder
from edge_runtime.updates import choose
from protocol.delivery import Current, Facts, decode, encode, in_rollout
from protocol.errors import FedgeError
from tests.delivery_world import World, in_use, refused, update

IDS = [f"{digit}" * 64 for digit in "abcdef"]
names = st.text("abcdefgh0123", min_size=1, max_size=12)


@given(names, st.sampled_from(IDS), st.integers(0, 1000), st.integers(0, 1000))
def test_a_wider_rollout_keeps_every_device(name: str, release: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert in_rollout(name, release, low) <= in_rollout(name, release, high)
    assert not in_rollout(name, release, 0)
    assert in_rollout(name, release, 1000)


def test_a_rollout_takes_its_share_and_another_share_next_time() -> None:
    devices = [f"d-{number}" for number in range(4000)]
    for permille in (10, 100, 500, 900):
        inside = [{d for d in devices if in_rollout(d, one, permille)} for one in IDS[:2]]
        for chosen in inside:
            assert abs(len(chosen) - 4 * permille) < 130  # four standard deviations
        both = len(inside[0] & inside[1])
        assert abs(both - 4 * permille**2 / 1000) < 130


def offered(seqs: list[int], revoked: list[int]) -> Current:
    def file(kind: str, seq: int) -> dict[str, Any]:
        return {"name": f"x-{kind}-{seq}", "sha256": IDS[seq], "length": 1}

    return Current.model_validate(
        {
            "name": "x",
            "channel": "canary",
            "releases": [
                {
                    "seq": seq,
                    "rollout_permille": 1000,
                    "device_min": 1,
                    "files": {kind: file(kind, seq) for kind in ("adapter", "release", "passport")},
                }
                for seq in seqs
            ],
            "revoked": [{"seq": seq, "release": IDS[seq], "reason": ""} for seq in revoked],
        }
    )


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_the_newest_that_neither_failed_nor_was_withdrawn_is_chosen(
    order: list[int], failed: set[int], withdrawn: set[int]
) -> None:
    state = State(
        failed={IDS[seq]: {"seq": seq, "reason": "x"} for seq in failed},  # type: ignore[misc]
        withdrawn=[IDS[seq] for seq in sorted(withdrawn)],
    )
    found = choose(offered(order, []), "d", state)
    left = set(range(6)) - failed - withdrawn
    assert (found.seq if found else None) == (max(left) if left else None)


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_forms_come_back_as_they_were(seqs: set[int], revoked: set[int]) -> None:
    current = offered(sorted(seqs), sorted(revoked))
    assert decode(Current, current.encode(), source="x") == current
    for damaged in (current.encode()[:-3], b"[]", current.encode().replace(b'"x"', b'"/"', 1)):
        with refused("release.form"):
            decode(Current, damaged, source="x")


def test_facts_refuse_real_numbers() -> None:
    facts = Facts(
        plan="p",
        round=1,
        seq=1,
        log_origin="o",
        log_index=0,
        base=IDS[0],
        graph=IDS[1],
        device_min=1,
        epsilon_milli=None,
        metrics={"accuracy": 900},
    )
    assert decode(Facts, encode(facts), source="x") == facts
    with refused("release.form"):
        decode(Facts, encode(facts).replace(b"900", b"900.5"), source="x")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["install", "activate", "fail", "withdraw", "forgive", "die"]),
        st.integers(0, 5),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(STEPS)
def test_whatever_happens_to_a_store_it_names_only_what_it_has(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, which in steps:
            with Store(folder) as store:
                act(store, what, IDS[which], which)
            with Store(folder):  # whoever comes next
                state = read_state(folder)
            held = {one for one in (state.current, state.previous, state.candidate) if one}
            assert held == set(state.installed)
            assert {path.name for path in (folder / "releases").iterdir()} == held
            assert state.current is None or state.current != state.previous
            assert not held & set(state.withdrawn)
            assert state.current not in state.failed


def act(store: Store, what: str, release: str, seq: int) -> None:
    state = store.state
    match what:
        case "install" if release not in state.installed and release not in state.withdrawn:
            (store.staging(release) / "file").write_text(release)
            store.install(release, Installed(seq=seq, files={"file": release}))
        case "activate" if release in state.installed:
            store.activate(release)
        case "fail" if release in state.installed:
            store.fail(release, "x")
        case "withdraw":
            store.withdraw([*state.withdrawn, release][-3:])
        case "forgive":
            store.forgive()
        case "die":  # what a killed agent leaves
            (store.staging(release) / "half").write_text("x")
            folder = release_folder(store.folder, "9" * 64)
            folder.mkdir()
            (store.folder / ".state.json.tmp").write_text("{")
        case _:
            pass


EVENTS = st.lists(
    st.sampled_from(["good", "bad", "revoke", "promote", "update", "update", "retry"]),
    min_size=4,
    max_size=9,
)


@settings(max_examples=5, derandomize=True)
@given(events=EVENTS)
def test_no_order_of_events_makes_a_device_serve_what_it_must_not(
    tiny_base: Path, released: dict[str, Path], delivery_rows: Any, events: list[str]
) -> None:
    """It serves a release that passed its probe, never a withdrawn one after a successful refresh."""
    adapters = {"good": released["a"], "bad": released["b"]}
    with tempfile.TemporaryDirectory() as name:
        world = World.make(Path(name), tiny_base, adapters, delivery_rows)
        devices = [world.device("canary-1"), world.device("kiosk-1", channel="stable")]
        good, live, gone = set[int](), list[int](), set[int]()
        for event in events:
            if event in ("good", "bad"):
                seq = world.publish(event).seq
                live.append(seq)
                good |= {seq} if event == "good" else set()
            elif event == "revoke" and live:
                gone.add(live[-1])
                world.revoke(live.pop())
            elif event == "promote" and live:
                world.promote(live[-1])
            for device in devices if event in ("update", "retry") else []:
                reached = True
                try:
                    update(device)
                except FedgeError as error:
                    reached = "probe." in error.cause
                seq = in_use(device)
                assert seq is None or seq in good
                assert not reached or seq not in gone
