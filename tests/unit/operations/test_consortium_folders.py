"""A coordinator's and a site's folder: keys, the signed roster, certificates, the numbers shown."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedge.plans import read_manifest
from fedge.sites import app as sites
from operations.contact import known_roster, take_roster
from operations.coordinator import Coordinator, make_coordinator
from operations.folders import Invitation
from operations.site import Site, Work, make_site
from protocol.enrolment import sign_roster
from protocol.errors import (
    ArtefactError,
    DataError,
    FedgeError,
    MachineError,
    PlanError,
    ProofError,
)
from protocol.secagg.roster import parse_roster
from tests.plan_texts import commented_plan
from tests.unit.operations.consortium import NOW, enrolled, request_of


def test_secrets_are_their_owners(
    coordinator: Coordinator, invitation: Invitation, tmp_path: Path
) -> None:
    site = enrolled(tmp_path, "ward-1", invitation)
    for folder in (coordinator.folder, site.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in (folder / "keys").iterdir():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == 0o600 or path.suffix == ".crt"
    assert invitation.address == "fl.example.org:9440"
    given = (coordinator.folder / "invitation.json").read_text() + request_of(site).decode()
    for path in [*(coordinator.folder / "keys").iterdir(), *(site.folder / "keys").iterdir()]:
        if path.suffix in (".key", ".token"):
            assert path.read_text().strip() not in given
    with pytest.raises(ArtefactError, match="not empty"):
        enrolled(tmp_path, "ward-1", invitation)
    with pytest.raises(PlanError, match="the name"):
        make_site(tmp_path / "x", "Ward 1", invitation, work=Work(), port=9100)
    assert not (tmp_path / "x").exists()


def test_sites_come_and_go(
    coordinator: Coordinator, invitation: Invitation, tmp_path: Path
) -> None:
    sites = [enrolled(tmp_path, f"ward-{n}", invitation) for n in (1, 2)]
    for site in sites:
        coordinator.admit(request_of(site), source="r")
    assert coordinator.roster().version == 3
    listed = parse_roster(coordinator.roster_file.read_text(), source="r")
    assert sorted(listed) == ["ward-1", "ward-2"]
    with pytest.raises(PlanError, match="enrolled already"):
        coordinator.admit(request_of(sites[0]), source="r")
    other = enrolled(tmp_path / "other", "ward-1", invitation)
    with pytest.raises(PlanError, match="another site is enrolled as ward-1"):
        coordinator.admit(request_of(other), source="r")
    with pytest.raises(PlanError, match="no site ward-9"):
        coordinator.remove("ward-9")
    coordinator.remove("ward-1")
    coordinator.admit(request_of(other), source="r")
    coordinator.remove("ward-1")
    coordinator.remove("ward-2")
    assert coordinator.roster().sites == ()
    assert not coordinator.roster_file.exists()


def test_only_the_operators_key_changes_the_roster(
    coordinator: Coordinator, invitation: Invitation, tmp_path: Path
) -> None:
    site = enrolled(tmp_path, "ward-1", invitation)
    before = (coordinator.folder / "roster.signed.json").read_bytes()
    elsewhere = tmp_path / "elsewhere.key"
    (coordinator.folder / "keys" / "operator.key").rename(elsewhere)
    wrong = tmp_path / "wrong.key"
    wrong.write_text(Ed25519PrivateKey.generate().private_bytes_raw().hex())
    for key, error in ((None, MachineError), (wrong, PlanError)):
        with pytest.raises(error):
            coordinator.admit(request_of(site), source="r", key=key)
        assert (coordinator.folder / "roster.signed.json").read_bytes() == before
    coordinator.admit(request_of(site), source="r", key=elsewhere)
    assert coordinator.roster().version == 2


def test_a_site_takes_newer_rosters_of_its_operator_only(
    coordinator: Coordinator, invitation: Invitation, tmp_path: Path
) -> None:
    site = enrolled(tmp_path, "ward-1", invitation)
    signed = coordinator.folder / "roster.signed.json"
    assert known_roster(site) is None
    old = signed.read_bytes()
    coordinator.admit(request_of(site), source="r")
    take_roster(site, signed.read_bytes())
    take_roster(site, signed.read_bytes())  # the same again
    listed = parse_roster((site.folder / "roster.json").read_text(), source="r")
    assert list(listed) == ["ward-1"]
    stranger = Ed25519PrivateKey.generate()
    operator = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex((coordinator.folder / "keys" / "operator.key").read_text())
    )
    for data in (
        old,
        sign_roster(9, coordinator.roster().sites, stranger),
        sign_roster(2, (), operator),  # another version 2
        b"",
    ):
        with pytest.raises(ProofError):
            take_roster(site, data)
    known = known_roster(site)
    assert known == coordinator.roster()


@pytest.mark.parametrize(
    ("hosts", "ports"),
    [(["é"], (1, 2, 3)), (["a"], (1, 1, 2)), (["x" * 60 + ".xxxxx.org"], (1, 2, 3))],
)
def test_nothing_is_made_of_wrong_names_or_ports(
    tmp_path: Path, hosts: list[str], ports: tuple[int, int, int]
) -> None:
    folder = tmp_path / "new"
    if hosts[0].startswith("x"):  # a long name is fine: the certificate names it in full
        make_coordinator(folder, hosts, name="n", ports=ports, address="0.0.0.0", now=NOW)
        return
    with pytest.raises(PlanError):
        make_coordinator(folder, hosts, name="n", ports=ports, address="0.0.0.0", now=NOW)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (("port = 9440", "port = 0"), "public.port"),
        (("port = 9440", "prot = 9440"), "public.prot"),
        (("format = 1", "format = 2"), "format"),
        (("[limits]", "[limits"), "not valid TOML"),
        (('hosts = ["fl.example.org", "10.0.0.1"]', "hosts = []"), "public.hosts"),
    ],
)
def test_wrong_settings_name_their_key(
    coordinator: Coordinator, change: tuple[str, str], cause: str
) -> None:
    path = coordinator.folder / "config.toml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(MachineError, match=cause):
        Coordinator.open(coordinator.folder)


def test_a_port_that_changed_is_not_the_invited_one(coordinator: Coordinator) -> None:
    assert coordinator.told_elsewhere() is None
    path = coordinator.folder / "config.toml"
    path.write_text(path.read_text().replace("port = 9440", "port = 9540"))
    told = Coordinator.open(coordinator.folder).told_elsewhere()
    assert told == "fl.example.org:9440"


def test_a_site_says_what_it_lacks(invitation: Invitation, tmp_path: Path) -> None:
    site = enrolled(tmp_path, "ward-1", invitation)
    with pytest.raises(PlanError, match=r"work\.data"):
        site.verify_ready()
    named = replace(site, settings=site.settings.model_copy(update={"work": Work(data="gone")}))
    with pytest.raises(MachineError, match="gone is not there"):
        named.verify_ready()
    with pytest.raises(FedgeError):
        Site.open(tmp_path / "nowhere")


def test_what_does_not_fit_is_said_before_a_site_starts(
    invitation: Invitation, tmp_path: Path, tiny_base: Path
) -> None:
    fingerprint = read_manifest(tiny_base).fingerprint
    (tmp_path / "plan.toml").write_text(commented_plan(fingerprint))
    (tmp_path / "other.toml").write_text(commented_plan("0" * 64))
    rows = tmp_path / "rows.jsonl"
    site = enrolled(tmp_path, "ward-1", invitation)

    def fits(plan: str = "plan.toml") -> None:
        work = Work(data=str(rows), plan=str(tmp_path / plan), base=str(tiny_base))
        replace(site, settings=site.settings.model_copy(update={"work": work})).verify_fits()

    rows.write_text('{"text": "a", "label": "yes"}\n')
    fits()
    with pytest.raises(ArtefactError, match="is for base 000000000000"):
        fits("other.toml")
    with pytest.raises(PlanError, match="FileNotFoundError"):
        fits("gone.toml")
    rows.write_text('{"text": "a", "topic": "yes"}\n')
    with pytest.raises(DataError, match="line 1: the column `label` is missing"):
        fits()
    rows.write_text("")
    with pytest.raises(DataError, match="no rows"):
        fits()


def test_a_site_agrees_to_the_next_plan_or_stays_with_its_own(
    invitation: Invitation, tmp_path: Path, tiny_base: Path
) -> None:
    fingerprint = read_manifest(tiny_base).fingerprint
    for name in ("first", "second"):
        text = commented_plan(fingerprint).replace('"my-plan"', f'"{name}"')
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / "foreign.toml").write_text(commented_plan("0" * 64))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "yes"}\n')
    work = Work(data=str(rows), plan=str(tmp_path / "first.toml"), base=str(tiny_base))
    site = make_site(tmp_path / "site", "ward-1", invitation, work=work, port=9)
    config = site.folder / "config.toml"
    config.write_text(config.read_text() + "# ours\n")
    assert site.agree(tmp_path / "second.toml").name == "second"
    again = Site.open(site.folder)
    assert again.settings.work == work.model_copy(update={"plan": str(tmp_path / "second.toml")})
    assert config.read_text().endswith("# ours\n")
    assert "# what this site agreed to" in config.read_text()
    before = config.read_bytes()
    with pytest.raises(ArtefactError, match="is for base"):
        again.agree(tmp_path / "foreign.toml")
    with pytest.raises(MachineError, match="is not there"):
        again.agree(tmp_path / "gone.toml")
    assert config.read_bytes() == before
    line = next(one for one in before.decode().splitlines() if one.startswith("plan = "))
    named = line.split('"')[1]
    for odd in (f'"plan" = "{named}"', f"plan = '{named}'", f'plan = """{named}"""'):
        config.write_text(before.decode().replace(line, odd))
        with pytest.raises(MachineError, match="not clear where the plan is named"):
            Site.open(site.folder).agree(tmp_path / "first.toml")


GOES_ON = f"""
[start]
adapter = "{"1" * 64}"
settings = "{"4" * 64}"
round = 3
rounds = 3
plans = ["{"2" * 64}"]
origin = "fedge/first/1"
size = 40
root = "{"3" * 64}"
"""


@pytest.mark.parametrize("goes_on", [False, True])
def test_who_agrees_to_a_plan_that_goes_on_is_told_what_that_is(
    goes_on: bool, invitation: Invitation, tmp_path: Path, tiny_base: Path
) -> None:
    text = commented_plan(read_manifest(tiny_base).fingerprint)
    (tmp_path / "first.toml").write_text(text)
    (tmp_path / "second.toml").write_text(text + (GOES_ON if goes_on else ""))
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    work = Work(
        data=str(tmp_path / "rows.jsonl"), plan=str(tmp_path / "first.toml"), base=str(tiny_base)
    )
    site = make_site(tmp_path / "site", "ward-1", invitation, work=work, port=9)
    command = ["agree", str(site.folder), str(tmp_path / "second.toml")]
    said = CliRunner().invoke(sites, command).output
    assert ("audit verify RUN --before" in said) == goes_on, said
    told = json.loads(CliRunner().invoke(sites, [*command, "--json"]).output)
    assert told.get("goes_on_from") == ("fedge/first/1" if goes_on else None)
