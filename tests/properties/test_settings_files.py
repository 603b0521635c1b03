"""Settings that people edit: a byte-order mark changes nothing, other encodings are named, no crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import client.settings
from audit.commands import read_policy_file
from delivery import gate
from fedge import plans, rosters
from protocol.errors import FedgeError, PlanError
from server import app
from tests.plan_texts import commented_plan
from tests.properties.decoders.registry import registry as registry_of
from tests.properties.decoders.world import World

MARK = b"\xef\xbb\xbf"
OF_DECODERS = (
    "simulations.experiment:load_experiment",
    "edge_runtime.probe:read_probe",
    "edge_runtime.passport:read_policy",
    "edge_runtime.settings:read_device",
    "operations.folders:read_settings",
    "operations.folders:read_settings, coordinator",
    "operations.site:read_invitation",
)
Read = Callable[[Path], object]
Case = tuple[Path, bytes, Read]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("settings")
    registry = registry_of(World(folder / "world"))
    found: dict[str, Case] = {}
    for name in OF_DECODERS:
        opens = registry[name].opens
        assert opens is not None
        found[name] = (opens[0], registry[name].seeds[0], opens[1])
    toml = commented_plan("0" * 64).encode()
    put(folder / "run/plan.json", toml)
    written = app.read_plan(put(folder / "plan.toml", toml)).render().encode()
    roster = registry["protocol.secagg.roster:parse_roster"].seeds[0]
    run = folder / "run"

    def by_client(kind: str) -> Read:
        read = getattr(client.settings, kind)
        return lambda path: read(client.settings.file_key(path, PlanError))

    return found | {
        "plan of a command, TOML": (folder / "a.toml", toml, plans.read_plan),
        "plan of a command, JSON": (folder / "a.json", written, plans.read_plan),
        "plan of a coordinator, TOML": (folder / "b.toml", toml, app.read_plan),
        "plan of a coordinator, JSON": (folder / "b.json", written, app.read_plan),
        "plan of a client": (folder / "c.toml", toml, by_client("_plan")),
        "plan of a gate": (run / "plan.json", written, lambda path: gate.read_plan(path.parent)),
        "roster of an operator": (folder / "r.json", roster, rosters.read),
        "roster of a coordinator": (folder / "r.json", roster, app.read_roster),
        "roster of a client": (folder / "r.json", roster, by_client("_roster")),
        "policy of an auditor": (
            folder / "policy",
            registry["protocol.transparency.policy:parse_policy"].seeds[0],
            read_policy_file,
        ),
    }


NAMES = [
    *OF_DECODERS,
    *(f"plan of a {who}" for who in ("command, TOML", "command, JSON", "client", "gate")),
    *(f"plan of a coordinator, {kind}" for kind in ("TOML", "JSON")),
    *(f"roster of {who}" for who in ("an operator", "a coordinator", "a client")),
    "policy of an auditor",
]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_no_case_is_left_out(cases: dict[str, Case]) -> None:
    assert set(NAMES) == set(cases)


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_order_mark_changes_nothing(cases: dict[str, Case], name: str) -> None:
    path, data, read = cases[name]
    plain = repr(read(put(path, data)))
    path.unlink()
    assert repr(read(put(path, MARK + data))) == plain


@pytest.mark.parametrize("name", NAMES)
def test_another_encoding_is_an_error_of_the_file(cases: dict[str, Case], name: str) -> None:
    path, data, read = cases[name]
    with pytest.raises(FedgeError) as caught:
        read(put(path, data.decode().encode("utf-16")))
    assert path.name in str(caught.value) or path.parent.name in str(caught.value)
