"""A release of which a share was kept: what travels is shorter, what a device runs is the very file. (P-9.10)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuf.api.metadata import TargetFile, Targets

from base_model.release import release_adapter
from delivery.status import gather
from edge_runtime.adapter import read_tensors
from edge_runtime.fetching import Fetcher
from edge_runtime.store import read_state, release_folder
from protocol.bitmap_form import HEAD, encode_bitmap
from protocol.delivery import CANARY, STABLE, bitmap_name
from protocol.errors import DeliveryError
from protocol.peft_format import EDGE_FILE
from tests.delivery_world import NAME, World, now, refused, told_apart, update
from tests.tiny_model import TEXTS

KEEP = 0.25


@pytest.fixture(scope="module")
def sparse(
    tiny_base: Path, write_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A release of which a quarter was kept."""
    folder = write_adapter(tmp_path_factory.mktemp("sparse") / "adapter", seed=1, keep=KEEP)
    release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    return folder


@pytest.fixture
def world(tmp_path: Path, tiny_base: Path, released: dict[str, Path], sparse: Path) -> World:
    adapters = {"good": sparse, "bad": released["b"], "whole": released["a"]}
    rows = told_apart(tiny_base, sparse, released["b"])
    return World.make(tmp_path / "world", tiny_base, adapters, rows)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(name, first byte) of each target that a device asks for."""
    real, names = Fetcher.chunks, list[tuple[str, int]]()

    def listening(self: Fetcher, url: str, start: int = 0) -> Any:
        if "/targets/" in url:
            names.append((url.rpartition("/")[2].partition(".")[2], start))
        return real(self, url, start)

    monkeypatch.setattr(Fetcher, "chunks", listening)
    return names


def form_of(world: World, channel: str = CANARY, seq: int = 1) -> TargetFile | None:
    target = world.repository.roles[channel].signed.targets.get(
        f"{channel}/{bitmap_name(NAME, seq)}"
    )
    assert target is None or isinstance(target, TargetFile)
    return target


def test_the_form_travels_and_the_file_arrives(
    world: World, sparse: Path, fetched: list[tuple[str, int]]
) -> None:
    kiosk, offer = world.device(), world.publish()
    form, size = form_of(world), offer.files.adapter.length
    assert form is not None
    (row,) = gather(world.repository, [], now())["releases"]
    assert (row["adapter_bytes"], row["sent_bytes"]) == (size, form.length)
    kept = sum(np.count_nonzero(x) for x in read_tensors(sparse / EDGE_FILE).values())
    numbers = sum(x.size for x in read_tensors(sparse / EDGE_FILE).values())
    around = size - 4 * numbers  # names, shapes: what of them is no zero travels too
    assert 4 * kept < form.length <= HEAD + size // 32 + 1 + 4 * kept + around
    state = update(kiosk)
    assert state.current == offer.id
    installed = release_folder(kiosk.store, offer.id)
    assert (installed / EDGE_FILE).read_bytes() == (sparse / EDGE_FILE).read_bytes()
    assert {path.name for path in installed.iterdir()} == set(state.installed[offer.id].files)
    names = [name for name, _ in fetched]
    assert bitmap_name(NAME, 1) in names
    assert offer.files.adapter.name not in names


def test_a_whole_adapter_travels_as_it_always_has(
    world: World, fetched: list[tuple[str, int]]
) -> None:
    kiosk, offer = world.device(), world.publish("whole")
    assert form_of(world) is None
    with pytest.raises(DeliveryError, match="probe"):  # it answers otherwise than the sparse one
        update(kiosk)
    names = [name for name, _ in fetched]
    assert offer.files.adapter.name in names
    assert bitmap_name(NAME, 1) not in names


def test_it_is_promoted_and_withdrawn_with_its_release(world: World) -> None:
    kiosk, offer = world.device(channel=STABLE), world.publish()
    world.promote(1)
    canary, stable = form_of(world), form_of(world, STABLE)
    assert canary is not None
    assert stable is not None
    assert canary.hashes == stable.hashes
    assert update(kiosk).current == offer.id
    world.revoke(1)
    assert form_of(world) is form_of(world, STABLE) is None


def test_a_form_that_broke_off_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, fetched: list[tuple[str, int]]
) -> None:
    """Once while it comes, once behind it, when the file is made already."""
    kiosk, offer = world.device(), world.publish()
    listening, broken = Fetcher.chunks, {"bitmap", "json"}

    def breaking(self: Fetcher, url: str, start: int = 0) -> Any:
        end = url.rpartition(".")[2]
        for chunk in listening(self, url, start):
            if end in broken and ("bitmap" in url or "release" in url):
                broken.remove(end)
                yield chunk[: len(chunk) // 2]
                raise ConnectionResetError
            yield chunk

    monkeypatch.setattr(Fetcher, "chunks", breaking)
    for _ in range(2):
        with pytest.raises(DeliveryError):
            update(kiosk)
    assert update(kiosk).current == offer.id
    form = form_of(world)
    assert form is not None
    assert [(name, start) for name, start in fetched if name.endswith(".bitmap")] == [
        (bitmap_name(NAME, 1), 0),
        (bitmap_name(NAME, 1), form.length // 2),
    ]


def zeroed(sparse: Path) -> bytes:
    """The adapter with one more number at zero, of the same length."""
    data = bytearray((sparse / EDGE_FILE).read_bytes())
    words = np.frombuffer(bytes(data), "<u4", len(data) // 4)
    at = int(np.flatnonzero(words)[len(np.flatnonzero(words)) // 2])
    data[4 * at : 4 * at + 4] = bytes(4)
    return bytes(data)


ODD: dict[str, Callable[[bytes, Path], bytes]] = {
    "another adapter": lambda form, sparse: encode_bitmap(zeroed(sparse)),
    "a byte behind": lambda form, sparse: form + b"\0",
    "a bit too many": lambda form, sparse: form[:HEAD] + b"\xff" + form[HEAD + 1 :],
    "of a length of its own": lambda form, sparse: (
        form[:8] + (2**40).to_bytes(8, "little") + form[16:]
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_form_that_is_not_the_adapters_is_refused(world: World, sparse: Path, odd: str) -> None:
    """Whoever signed it; what is in use stays, and what is refused is not installed."""
    kiosk = world.device()
    first = world.publish()
    update(kiosk)
    world.publish()
    form = encode_bitmap((sparse / EDGE_FILE).read_bytes())
    targets = world.repository.copy(CANARY, Targets)  # by a thief of the channel's key
    path, data = f"{CANARY}/{bitmap_name(NAME, 2)}", ODD[odd](form, sparse)
    targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    world.repository.commit({CANARY: targets}, {path: data}, world.keys, now())
    for _ in range(2):
        with refused("release.bitmap"):
            update(kiosk)
    state = read_state(kiosk.store)
    assert state.current == first.id
    assert list(state.installed) == [first.id]


def test_an_adapter_that_grows_beyond_what_the_device_takes_is_not_fetched(
    world: World, fetched: list[tuple[str, int]]
) -> None:
    """The form would fit."""
    offer, form = world.publish(), form_of(world)
    assert form is not None
    kiosk = world.device(most_bytes=offer.files.adapter.length - 1)
    assert form.length < kiosk.most_bytes
    with refused("release.size"):
        update(kiosk)
    assert not [name for name, _ in fetched if name.endswith(".bitmap")]
