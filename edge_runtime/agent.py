"""The device's agent: update, probe, switch, go back, report. Serving never waits for it. (P-9.7)"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_runtime.backends import Backend, open_device
from edge_runtime.probe import REMEDY as PROBE_REMEDY
from edge_runtime.probe import check_health, read_probe
from edge_runtime.settings import Device
from edge_runtime.store import MOST_TRIES, Personal, State, Store, read_state, release_folder
from protocol.delivery import DEVICE_VERSION, DeviceReport, Fault, Held
from protocol.errors import DataError, DeliveryError, FedgeError, MachineError
from storage.whole import write_whole

BY_HAND = "rolled back by hand"


def update(device: Device, now: datetime, *, activate: bool = True, retry: bool = False) -> State:
    """Take what the repository offers this device, if anything is new; ``retry`` also what failed here.

    Raises DeliveryError or ArtefactError when something is refused, fails or cannot be reached, DataError for
    rows of the probe that its base cannot be asked, MachineError for what this machine lacks. Then, too,
    a release that was accepted earlier is in use, and the report says why.
    """
    from edge_runtime.updates import fetch

    with Store(device.store) as store:
        if retry:
            store.forgive()
        try:
            release = fetch(device, store, now)
            if release is None:
                outcome = "there is no release for this device"
            elif release == store.state.current:
                outcome = "up to date"
            elif not activate:
                outcome = f"downloaded {release[:12]}"
            else:
                outcome = _probe_and_activate(device, store, release)
            store.conclude(outcome)
        except FedgeError as error:
            # Of the device's own rows a report tells nothing.
            store.conclude(error.public if isinstance(error, DataError) else error.cause)
            raise
        finally:
            write_report(device, store.state, now)
        return store.state


def activate(device: Device, release: str, now: datetime) -> State:
    """Probe and use a release that is in the store: the candidate, or one whose id begins so."""
    with Store(device.store) as store:
        state = store.state
        matches = [id_ for id_ in state.installed if release and id_.startswith(release)]
        chosen = matches[0] if len(matches) == 1 else None if release else state.candidate
        if chosen is None or chosen in state.withdrawn:
            raise DeliveryError(
                "store.unknown",
                f"{release or 'a candidate'} is not in the store, or is withdrawn",
                "`fedge edge status` lists what is there; `fedge edge update` brings what is new",
            )
        try:
            store.conclude(_probe_and_activate(device, store, chosen))
        finally:
            write_report(device, store.state, now)
        return store.state


def roll_back(device: Device, reason: str, now: datetime, *, wait_s: float = 0.0) -> State:
    """Go back to the release before, and do not take this one again.

    From a personal adapter: to the release that it was trained from; the adapter is removed.
    """
    with Store(device.store, wait_s=wait_s) as store:
        if store.state.current is None:
            raise DeliveryError("store.unknown", "no release is in use", "`fedge edge update`")
        if store.state.adapted(device.personal) is not None:
            store.leave_personal()
            store.conclude(f"personal adapter removed: {reason}")
        else:
            store.fail(store.state.current, reason)
            store.conclude(reason)
        write_report(device, store.state, now)
        return store.state


def report(device: Device, state: State, now: datetime) -> DeviceReport:
    """What the operator gets to know."""

    def held(release: str | None) -> Held | None:
        installed = state.installed.get(release or "")
        return Held(seq=installed.seq, release=release or "") if installed else None

    return DeviceReport(
        device=device.id,
        name=device.name,
        channel=device.channel,
        time=int(now.timestamp()),
        understands=DEVICE_VERSION,
        outcome=state.outcome,
        refreshed=state.refreshed,
        current=held(state.current),
        previous=held(state.previous),
        faults=[
            Fault(seq=failed.seq, release=release, reason=failed.reason)
            for release, failed in state.failed.items()
        ],
        personal=state.adapted(device.personal) is not None,
    )


def write_report(device: Device, state: State, now: datetime) -> None:
    """Into the file that the operator collects, where there is one. A full disk is no error here."""
    if device.report is None:
        return
    try:
        device.report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(device.report, report(device, state, now).encode())
    except OSError:
        return


def status(device: Device) -> dict[str, Any]:
    """Plain values for people and programs."""
    state = read_state(device.store)
    facts = report(device, state, datetime.now(UTC)).model_dump(mode="json")
    facts |= {"candidate": state.candidate, "withdrawn": state.withdrawn, "personal": None}
    if state.personal is not None:
        answers = state.adapted(device.personal) is not None
        facts["personal"] = _personal(state.personal) | {"in_use": answers}
    return facts


def _personal(personal: Personal) -> dict[str, Any]:
    return {"release": personal.adapter.seq} | personal.model_dump(mode="json", exclude={"adapter"})


def adopt(
    device: Device,
    store: Store,
    backend: Backend[Any],
    staged: Path,
    personal: Personal,
    now: datetime,
) -> None:
    """Probe what is ``staged`` (:meth:`Store.new_personal`) as any release, and let it answer.

    Raises DeliveryError `probe...`, or what the device's own probe or machine raises, and then nothing has
    changed.
    """
    check_health(staged, backend, read_probe(device.probe))
    store.adapt(personal)
    store.conclude(f"personal adapter from release {personal.adapter.seq} in use")
    write_report(device, store.state, now)


def _probe_and_activate(device: Device, store: Store, release: str) -> str:
    """What was done. Raises DeliveryError `probe...`; then the release is marked, another stays in use.

    What is wrong with the device itself, its base or its probe marks no release: then it is tried again.
    """
    seq = store.state.installed[release].seq
    backend, probe = open_device(device), read_probe(device.probe)
    questions = backend.questions(probe)
    folder = release_folder(store.folder, release)
    begun = store.begin(release)
    try:
        if not begun:  # a lack of memory, or a crash in what reads the file
            raise DeliveryError("probe.died", f"{MOST_TRIES} probes did not end", PROBE_REMEDY)
        health = check_health(folder, backend, probe, questions=questions)
    except MachineError:
        store.end_undecided()
        raise
    except DeliveryError as error:
        store.fail(release, error.cause)
        raise
    before = store.state.personal
    store.activate(release)
    in_use = (
        f"release {seq} in use: {health.correct} of {health.rows} right, {health.latency_ms:.0f} ms"
    )
    return in_use + _set_aside(before, store.state)


def _set_aside(before: Personal | None, state: State) -> str:
    """What becomes of a personal adapter when another release is in use."""
    if before is None or before.origin == state.current:
        return ""
    fate = "kept while that release is" if state.personal else "removed with that release"
    return f"; the personal adapter from release {before.adapter.seq} answers no more, {fate}"
