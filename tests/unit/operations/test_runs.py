"""`fedge run` before anything is started, and how an ended app's outcome becomes an exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import operations.overview
from base_model.verify import read_manifest
from operations.coordinator import Coordinator, make_coordinator
from operations.folders import free_port
from operations.overview import known_runs, note_run, run_view
from operations.running import _error, order, round_line, run_to_the_end
from operations.site import Work, make_site, read_invitation
from operations.waiting import Words, away, doubled, failures, missed_in
from protocol.errors import ArtefactError, FedgeError, MachineError, PlanError, RoundError
from protocol.plan_sections import Cohort
from server.app import note_outcome
from server.control import Control, NodeState
from storage.locks import locked
from tests.unit.fedge.test_command_line import fedge

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    ports = (free_port(), free_port(), free_port())
    return make_coordinator(
        tmp_path / "c", ["127.0.0.1"], name="t", ports=ports, address="127.0.0.1", now=NOW
    )


@pytest.fixture
def plan_file(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: object) -> Path:
        document = {
            "name": "t",
            "base": {"fingerprint": read_manifest(tiny_base).fingerprint},
            "task": {"labels": ["a", "b"]},
            "cohort": {"size": 3, "quorum": 3},
        }
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(document | sections))
        return path

    return write


def admit(coordinator: Coordinator, folder: Path, count: int) -> None:
    invitation = read_invitation(coordinator.folder / "invitation.json")
    for number in range(count):
        name = f"ward-{number}"
        site = make_site(folder / name, name, invitation, work=Work(), port=9100)
        coordinator.admit((site.folder / "request.json").read_bytes(), source="r")


def test_a_run_is_checked_before_it_is_submitted(
    coordinator: Coordinator, plan_file: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    admit(coordinator, tmp_path, 2)
    with pytest.raises(PlanError, match="2 sites are enrolled, the plan's quorum is 3"):
        order(coordinator, plan_file(), tiny_base, None, resume=False)
    admit(coordinator, tmp_path / "more", 0)
    invitation = read_invitation(coordinator.folder / "invitation.json")
    third = make_site(tmp_path / "w", "ward-9", invitation, work=Work(), port=9100)
    coordinator.admit((third.folder / "request.json").read_bytes(), source="r")
    made = order(coordinator, plan_file(), tiny_base, None, resume=False)
    assert made.folder == coordinator.folder / "runs" / "t"
    with pytest.raises(PlanError):
        order(coordinator, plan_file(rule={"name": "prompt"}), tiny_base, None, resume=False)
    with pytest.raises(ArtefactError):
        order(coordinator, plan_file(), tmp_path, None, resume=False)
    (tmp_path / "run" / "rounds" / "0000").mkdir(parents=True)
    with pytest.raises(ArtefactError, match="holds a run already"):
        order(coordinator, plan_file(), tiny_base, tmp_path / "run", resume=False)
    assert order(coordinator, plan_file(), tiny_base, tmp_path / "run", resume=True).resume
    with pytest.raises(MachineError, match="does not answer"):
        run_to_the_end(coordinator, made, lambda rounds, text: None)


class Answering(Control):
    """A SuperLink by which nodes of these keys are on line."""

    def __init__(self, online: list[bytes]) -> None:
        self.online = online

    def nodes(self) -> list[NodeState]:
        return [NodeState(key=key, status="online", last_activated_at="") for key in self.online]

    def doubled(self) -> list[bytes]:
        return self.online


def test_sites_of_another_cluster_are_not_counted(
    coordinator: Coordinator, plan_file: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    admit(coordinator, tmp_path, 4)
    named: dict[str, object] = {"size": 3, "quorum": 3}
    named["clients"] = ["ward-1", "ward-2", "ward-7", "ward-8"]
    with pytest.raises(PlanError, match=r"2 of the 4 sites in .*missing: ward-7, ward-8"):
        order(coordinator, plan_file(cohort=named), tiny_base, None, resume=False)
    named["clients"] = ["ward-1", "ward-2", "ward-3"]
    assert order(coordinator, plan_file(cohort=named), tiny_base, None, resume=False)
    cohort = Cohort(size=3, quorum=3, clients=["ward-1", "ward-2", "ward-3"])
    control = Answering([site.node_key_pem for site in coordinator.roster().sites[:3]])
    assert away(coordinator, control, cohort) == (2, "ward-3")
    assert away(coordinator, control, Cohort()) == (3, "ward-3")
    assert doubled(coordinator, control, cohort) == ["ward-1", "ward-2"]
    assert doubled(coordinator, control, Cohort()) == ["ward-0", "ward-1", "ward-2"]


def test_the_commands_exit_codes(
    coordinator: Coordinator, plan_file: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    command = ("run", plan_file(), "--coordinator", coordinator.folder, "--base", tiny_base)
    assert fedge(*command).returncode == PlanError.exit_code  # nobody is enrolled
    assert fedge(*command[:3], tmp_path, *command[4:]).returncode == MachineError.exit_code
    assert fedge("coordinator", "status", coordinator.folder).returncode == 8
    assert fedge("coordinator", "stop", coordinator.folder).returncode == 0
    shown = json.loads(fedge("status", coordinator.folder, "--json").stdout)
    assert shown["running"] is False


def test_an_outcome_keeps_its_exit_code(tmp_path: Path) -> None:
    error = RoundError("round 3 missed its quorum", "mend the clients")
    outcome = {"finished": False, "exit_code": error.exit_code, "cause": error.cause, "remedy": "x"}
    assert _error(outcome).exit_code == RoundError.exit_code
    assert _error(outcome).cause == error.cause
    for code in (0, -1, 300, "7", None):
        assert _error({"exit_code": code}).exit_code == FedgeError.exit_code
    entry = {"folder": str(tmp_path), "name": "t", "planned": 3, "run": 1}
    assert run_view(tmp_path, entry).state == "stopped"
    note_outcome(tmp_path, outcome)
    assert run_view(tmp_path, entry).state == "failed"
    assert run_view(tmp_path, entry).cause == error.cause
    note_outcome(tmp_path, {"finished": True, "exit_code": 0})
    assert run_view(tmp_path, entry).state == "finished"
    note_outcome(tmp_path, None)
    with locked(tmp_path / ".lock"):
        assert run_view(tmp_path, entry).state == "running"


def test_a_word_comes_after_ten_seconds_and_ever_more_rarely() -> None:
    words = Words(100.0)
    said = [at for at in range(100, 800) if words.due(float(at)) is not None]
    assert said == [110, 130, 170, 250, 410, 570, 730]


def test_failed_attempts_and_missing_clients_are_told_once(tmp_path: Path) -> None:
    rounds, known = tmp_path / "rounds", set[str]()
    (rounds / "0003").mkdir(parents=True)
    dropped = [
        {"client": "ward-2", "reason": "no-reply", "detail": "mask: no answer"},
        {"client": "ward-3", "reason": "unawaited", "detail": "mask: enough others had answered"},
    ]
    record = json.dumps({"round": 3, "dropped": dropped})
    (rounds / "0003.attempt1.json").write_text(record)
    (rounds / "0003.attempt2.json").write_text("[]")
    (rounds / "0003" / "record.json").write_text(record)
    assert list(failures(tmp_path, known)) == [
        "round 3, an attempt failed: ward-2 (mask: no answer)"
    ]
    assert list(failures(tmp_path, known)) == []
    assert missed_in(tmp_path, 3) == "ward-2 (mask: no answer)"
    assert missed_in(tmp_path, 4) == ""


def test_a_run_in_the_same_folder_takes_the_place_of_the_earlier(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    for run in (1, 2):
        note_run(coordinator, tmp_path, name="t", planned=3, run=run)
    note_run(coordinator, tmp_path / "other", name="t", planned=3, run=3)
    assert [entry["run"] for entry in known_runs(coordinator)] == [2, 3]
    (coordinator.state / "runs.json").write_text("[]")
    with pytest.raises(MachineError, match="damaged"):
        known_runs(coordinator)


def test_a_line_for_a_round_says_what_was_measured_and_how_long_it_will_take(
    tmp_path: Path,
) -> None:
    assert (
        round_line(tmp_path, 3, seconds=60.0, left=5)
        == "round 3 is published; 60 s, about 5 min left"
    )
    record = tmp_path / "rounds" / "0003" / "record.json"
    record.parent.mkdir(parents=True)
    metrics = {"examples": 10.0, "loss_sum": 2.5, "eval_examples": 8.0, "eval_correct": 6.0}
    record.write_text(json.dumps({"metrics": metrics}))
    line = round_line(tmp_path, 3, seconds=2.0, left=0)
    assert line == (
        "round 3 is published: accuracy 75.0% of the round before on the sites' held-out rows, "
        "loss in training 0.250; 2 s"
    )
    record.write_text(json.dumps({"metrics": {}}))  # under differential privacy nothing is known
    assert round_line(tmp_path, 3, seconds=2.0, left=1).startswith("round 3 is published; 2 s")


@pytest.mark.parametrize("quiet", [[], ["--quiet"], ["--json"]])
def test_a_run_begins_with_its_plans_warnings(
    coordinator: Coordinator,
    plan_file: Callable[..., Path],
    tiny_base: Path,
    tmp_path: Path,
    quiet: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    admit(coordinator, tmp_path, 3)
    plan = plan_file(local={"learning_rate": 2000.0})
    where = ["--coordinator", str(coordinator.folder), "--base", str(tiny_base)]
    done = fedge("run", str(plan), *where, *quiet)
    assert done.returncode == 8  # nobody runs the coordinator
    assert "warning `local.learning_rate`" in done.stderr


def test_an_overview_reads_a_record_once_and_rounds_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"folder": str(tmp_path), "name": "t", "planned": 3, "run": 1}

    def publish(number: int, used: int, clipped: float) -> None:
        folder = tmp_path / "rounds" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "round": number,
            "used": ["a"] * used,
            "dropped": [{"client": "b", "reason": "late", "detail": ""}],
            "privacy": {"epsilon": float(used)},
            "failures": 1,
            "clipped_share": clipped,
            "void": None,
            "ended_at": float(number),
        }
        (folder / "record.json").write_text(json.dumps(record))

    for number, used in ((0, 0), (9999, 3), (10_000, 5)):
        publish(number, used, number / 10_000)
    shutil.copytree(tmp_path / "rounds/9999", tmp_path / "rounds/9999.copy")  # an operator's
    seen = run_view(tmp_path, entry)
    assert (seen.rounds, seen.replies, seen.drops, seen.failures) == (2, 8, 2, 2)
    assert (seen.clipped, seen.epsilon, seen.last_round_at) == (1.0, 5.0, 10_000.0)
    read: list[bytes] = []
    genuine = operations.overview.parse_json
    monkeypatch.setattr(
        operations.overview, "parse_json", lambda data: read.append(data) or genuine(data)
    )
    assert run_view(tmp_path, entry) == seen
    assert read == []
    publish(10_001, 1, 0.5)
    publish(9999, 4, 0.5)  # put back, or another run in this folder
    again = run_view(tmp_path, entry)
    assert (again.rounds, again.replies, len(read)) == (3, 10, 2)


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"round": 1, "used": 3}', "\udcff"])
def test_a_record_that_cannot_be_read_ends_the_overview_of_its_run(
    tmp_path: Path, damaged: str
) -> None:
    entry = {"folder": str(tmp_path), "name": "t", "planned": 3, "run": 1}
    folder = tmp_path / "rounds" / "0001"
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(damaged.encode("utf-8", "surrogateescape"))
    assert run_view(tmp_path, entry).rounds == 0
