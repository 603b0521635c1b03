"""From a repository to a release on this device: TUF, facts, download, passport. (P-9.8)

1. TUF says what is current: signatures under their thresholds, no older than before, not expired.
2. ``<channel>/<name>.current.json``: what is withdrawn is left at once; the newest release for which this
   device is in the rollout, and which has not failed here, is wanted.
3. Its facts fit this base, this graph, this log, this version, before anything is downloaded.
4. The files, resumable, each with TUF's digest and length; of the adapter its bitmap form, where there is a
   shorter one, which has to give the very file. (P-9.10)
5. The passport: the files are a release in the log that the device trusts, at the place the facts name.

Then it is installed as the candidate; the probe and the switch are :mod:`edge_runtime.agent`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
)
from tuf.api.metadata import TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from edge_runtime.adapter import read_note
from edge_runtime.base import check_file, read_any_manifest
from edge_runtime.fetching import Fetcher, WebPageError
from edge_runtime.passport import read_policy, verify_passport
from edge_runtime.settings import Device
from edge_runtime.store import METADATA, Installed, State, Store, release_folder
from protocol.bitmap_form import decode_bitmap
from protocol.delivery import (
    DEVICE_VERSION,
    MOST_CURRENT,
    MOST_METADATA,
    MOST_NOTE,
    Current,
    Facts,
    File,
    Offer,
    bitmap_name,
    current_name,
    decode,
    in_rollout,
    target_names,
)
from protocol.errors import ArtefactError, DeliveryError, ProofError
from protocol.manifests import graphs_digest
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.offline import MOST_BYTES as MOST_PASSPORT
from protocol.web_page import REMEDY as WEB_PAGE
from storage.regular import read_regular
from storage.whole import remove, write_whole

BITMAP = "adapter.bitmap"  # in a staging folder alone
KINDS = {"adapter": EDGE_FILE, "release": RELEASE_FILE, "passport": PASSPORT_FILE}
BACKWARDS = timedelta(days=1)  # a clock further behind than this is wrong, not slow
ELSEWHERE = (
    401,
    403,
    404,
    410,
)  # a server that is there, and has not or gives not what was asked for
STAY = "what is in use stays in use"
CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=MOST_METADATA["root"],
    timestamp_max_length=MOST_METADATA["timestamp"],
    snapshot_max_length=MOST_METADATA["snapshot"],
    targets_max_length=MOST_METADATA["targets"],
)


def fetch(device: Device, store: Store, now: datetime) -> str | None:
    """Bring the release that this device should run into the store; its id, None when there is none.

    Raises DeliveryError; whatever happened, what is in use was accepted and is not withdrawn.
    """
    _check_clock(store.state, now)
    with _plain_errors():
        remote = _Remote(device, store)
        current = remote.current()
        store.keep_metadata()
        # Only now is the time confirmed: by a timestamp that was signed within the last day.
        store.refreshed(int(now.timestamp()))
        store.withdraw(one.release for one in current.revoked)
        offer = choose(current, device.id, store.state)
        if offer is None or _has(store, offer.id):
            store.clear_staging()
            return None if offer is None else offer.id
        facts = remote.facts(offer)
        _check_facts(facts, offer, device)
        folder = store.staging(offer.id)
        for kind, file in offer.files.by_kind().items():
            if kind != "adapter" or not remote.expand(offer, folder):
                remote.download(file, folder / KINDS[kind], most=_most(kind, device))
    _check_passport(folder, facts, device)
    files = {KINDS[kind]: file.sha256 for kind, file in offer.files.by_kind().items()}
    store.install(offer.id, Installed(seq=offer.seq, files=files))
    return offer.id


def choose(current: Current, device: str, state: State) -> Offer | None:
    """The newest release for this device that has not failed on it."""
    for offer in sorted(current.releases, key=lambda offer: -offer.seq):
        allowed = in_rollout(device, offer.id, offer.rollout_permille)
        if allowed and offer.id not in state.failed and offer.id not in state.withdrawn:
            return offer
    return None


def _has(store: Store, release: str) -> bool:
    """The release is installed, and its files are still what they were."""
    installed = store.state.installed.get(release)
    if installed is None:
        return False
    try:
        for name, sha256 in installed.files.items():
            check_file(release_folder(store.folder, release) / name, sha256)
    except ArtefactError:
        return False  # a disk that rots: fetched again
    return True


class _Remote:
    """The repository as TUF lets this device see it."""

    def __init__(self, device: Device, store: Store) -> None:
        """Refresh the metadata; tuf keeps what it accepted, so that nothing older is taken later."""
        try:
            root = read_regular(device.root)
        except OSError as error:
            raise ArtefactError(
                f"{device.root}: cannot be read ({type(error).__name__})",
                "it is part of the device's image: the repository's first root.json",
            ) from None
        self._device = device
        self._fetcher = Fetcher(device.repository, deadline_s=device.deadline_s)
        self._updater = Updater(
            metadata_dir=str(store.folder / METADATA),
            metadata_base_url=self._fetcher.metadata_url,
            fetcher=self._fetcher,
            config=CONFIG,
            bootstrap=root,
        )
        self._updater.refresh()

    def current(self) -> Current:
        """What the channel offers."""
        name = current_name(self._device.name)
        target = self._updater.get_targetinfo(f"{self._device.channel}/{name}")
        if target is None:
            raise DeliveryError(
                "release.unknown",
                f"nothing was offered yet to channel `{self._device.channel}` for `{self._device.name}`",
                "wait for a release there, or correct `name` or `channel` in the device's settings; "
                + STAY,
            )
        if target.length > MOST_CURRENT:
            raise _refused("release.size", f"{name} has {target.length} bytes")
        data = self._fetcher.download_bytes(self._url(target), target.length)
        target.verify_length_and_hashes(data)
        current = decode(Current, data, source=name)
        if (current.name, current.channel) != (self._device.name, self._device.channel):
            raise _refused("release.channel", f"{name} is about {current.channel}/{current.name}")
        return current

    def facts(self, offer: Offer) -> Facts:
        """What the channel signed about an offer's adapter; TUF and the offer name the same files."""
        names = target_names(self._device.name, offer.seq)
        for kind, file in offer.files.by_kind().items():
            target = self._target(file.name)
            offered = (file.name, file.length, file.sha256)
            if offered != (names[kind], target.length, target.hashes.get("sha256")):
                raise _refused(
                    "release.files", f"{file.name[:200]} is not the {kind} that TUF names"
                )
        custom = self._target(offer.files.adapter.name).custom
        return decode(Facts, json.dumps(custom).encode(), source=offer.files.adapter.name)

    def download(self, file: File, part: Path, *, most: int) -> None:
        """Fetch a file into ``part``, going on where an earlier try ended. Verified when it returns."""
        _check_size(file.name, file.length, most)
        self._download(self._target(file.name), part)

    def expand(self, offer: Offer, folder: Path) -> bool:
        """Whether the adapter lies in ``folder``, by its bitmap form, which is fetched where it is shorter.

        Raises DeliveryError `release.bitmap` for one that does not give the adapter. (P-9.10)
        """
        file, most = offer.files.adapter, self._device.most_bytes
        name = bitmap_name(self._device.name, offer.seq)
        form, whole = folder / BITMAP, folder / EDGE_FILE
        target = self._updater.get_targetinfo(f"{self._device.channel}/{name}")
        if shorter := target is not None and target.length < file.length:
            _check_size(file.name, file.length, most)
            if not _is_there(whole, file):  # an earlier try may have ended behind it
                self._download(target, form)
                write_whole(whole, _expanded(form, file, name))
        remove(form)
        return shorter

    def _download(self, target: TargetFile, part: Path) -> None:
        """Also of a target that no file of an offer names."""
        for _ in range(2):  # once more from the start, when what lay there was not its beginning
            start = part.stat().st_size if part.exists() else 0
            if start < target.length or not part.exists():
                self._append(target, part, start)
            try:
                with part.open("rb") as stream:
                    target.verify_length_and_hashes(stream)
            except LengthOrHashMismatchError:
                part.unlink()
                if start == 0:
                    raise
            else:
                return
        raise _refused("repository.refused", f"{target.path} is not what TUF names")

    def _append(self, target: TargetFile, part: Path, start: int) -> None:
        size = start
        with part.open("ab") as stream:
            for chunk in self._fetcher.chunks(self._url(target), start):
                size += len(chunk)
                if size > target.length:
                    stream.truncate(0)
                    raise DownloadLengthMismatchError(f"{target.path} does not end")
                stream.write(chunk)

    def _target(self, name: str) -> TargetFile:
        target = self._updater.get_targetinfo(f"{self._device.channel}/{name}")
        if target is None:  # unknown, or outside what the channel may sign
            raise _refused("release.unknown", f"the channel has no {name[:200]}")
        return target

    def _url(self, target: TargetFile) -> str:
        folder, _, name = target.path.rpartition("/")
        sha256 = target.hashes.get("sha256")
        if sha256 is None:
            raise _refused("release.files", f"{target.path} comes without a SHA-256")
        return f"{self._fetcher.targets_url}{folder}/{sha256}.{name}"


def _check_clock(state: State, now: datetime) -> None:
    confirmed = datetime.fromtimestamp(state.clock, UTC)
    if now < confirmed - BACKWARDS:
        raise DeliveryError(
            "clock.behind",
            f"the clock says {now:%Y-%m-%d}, the repository was current on {confirmed:%Y-%m-%d}",
            f"set the clock; {STAY}",
        )


def _check_facts(facts: Facts, offer: Offer, device: Device) -> None:
    """The release is for this base, graph, log and version."""
    manifest = read_any_manifest(device.base)
    logs = [log.name for log in read_policy(device.trust).logs]
    faults = {
        "release.files": (facts.seq != offer.seq, "its files are of another release"),
        "release.device": (
            max(facts.device_min, offer.device_min) > DEVICE_VERSION,
            "it needs a newer fedge",
        ),
        "release.base": (facts.base != manifest.fingerprint, "its base is another one"),
        "release.graph": (facts.graph != graphs_digest(manifest), "its base has another graph"),
        "release.log": (
            facts.log_origin not in logs,
            f"{device.trust.name} does not name its log, {facts.log_origin[:120]!r}",
        ),
    }
    for code, (wrong, why) in faults.items():
        if wrong:
            raise _refused(
                code, f"release {offer.seq} of {device.name} is not for this device: {why}"
            )


def _check_passport(folder: Path, facts: Facts, device: Device) -> None:
    """The files are a release in the log that the device trusts, where the channel says it is."""
    try:
        note = read_note(folder)
        policy = read_policy(device.trust)
        proof = verify_passport(folder, round_number=note.round, policy=policy)
    except (ArtefactError, ProofError) as error:
        raise _refused("release.passport", error.cause) from None
    origin = proof.checkpoint.partition("\n")[0]
    if (proof.index, origin, note.round) != (facts.log_index, facts.log_origin, facts.round):
        raise _refused("release.passport", "it is of another leaf than the channel names")


def _is_there(path: Path, file: File) -> bool:
    try:
        check_file(path, file.sha256)
    except ArtefactError:
        return False
    return True


def _expanded(form: Path, file: File, name: str) -> bytes:
    """The adapter that the bitmap form of this name gives. Raises DeliveryError `release.bitmap`."""
    try:
        data = decode_bitmap(read_regular(form, most=file.length), length=file.length, source=name)
    except ArtefactError as error:
        raise _refused("release.bitmap", error.cause) from None
    if sha256(data) != file.sha256:
        raise _refused("release.bitmap", f"{name} gives another file than {file.name}")
    return data


def _check_size(name: str, length: int, most: int) -> None:
    if length > most:
        raise _refused("release.size", f"{name} has {length} bytes of {most}")


def _most(kind: str, device: Device) -> int:
    return {"adapter": device.most_bytes, "release": MOST_NOTE, "passport": MOST_PASSPORT}[kind]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """TUF's errors as ours. The first that fits says whose fault it is."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise _refused("repository.expired", f"{error}; or this clock is ahead") from None
    except RepositoryError as error:
        raise _refused("repository.refused", f"{type(error).__name__}: {error}") from None
    except DownloadLengthMismatchError as error:
        raise _refused("download.endless", str(error)) from None
    except SlowRetrievalError as error:
        raise _unreachable("download.deadline", str(error)) from None
    except WebPageError as error:
        raise DeliveryError("download.webpage", str(error)[:400], f"{WEB_PAGE}; {STAY}") from None
    except DownloadHTTPError as error:
        if error.status_code not in ELSEWHERE:
            raise _unreachable("download.failed", str(error)) from None
        remedy = (
            "correct `repository` in the device's settings: `metadata` and `targets` lie below it"
        )
        raise DeliveryError("download.failed", str(error)[:400], f"{remedy}; {STAY}") from None
    except DownloadError as error:
        raise _unreachable("download.failed", str(error)) from None
    except OSError as error:
        raise _unreachable("store.unwritable", error.strerror or type(error).__name__) from None


def _refused(code: str, cause: str) -> DeliveryError:
    return DeliveryError(code, cause[:400], f"keep it as evidence and tell the publisher; {STAY}")


def _unreachable(code: str, cause: str) -> DeliveryError:
    return DeliveryError(code, cause[:400], f"try again later; {STAY}")
