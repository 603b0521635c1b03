"""The resident trainer: real processes, asked, killed, stopped, replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import trainer as trainer_module
from client import trainer_link
from client.job import Job, contribution
from client.trainer import Trainer, beside, check_path, code_version, verify_peer
from protocol.errors import ArtefactError, DataError, MachineError
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.wire import Instruction
from storage.locks import locked

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., Plan]
Instruct = Callable[..., tuple[Instruction, Vector]]
LONG = {"batch_size": 1, "epochs": 500}


def ended(path: Path) -> None:
    """Whatever serves ``path`` is gone."""
    with suppress(MachineError):
        if (found := trainer_link.state(path)) is not None:
            os.kill(found.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def site(
    make_plan: Make, rows, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Job, Path]]:
    """A job and the socket of a trainer that the tests of this module share."""
    folder = tmp_path_factory.mktemp("site")
    plan = make_plan()
    (folder / "plan.json").write_text(plan.model_dump_json())
    lines = [
        json.dumps({"text": text, "label": plan.task.labels[label]})
        for text, label in zip(rows.texts, rows.targets, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    job = Job(
        client="ward-3",
        plan=folder / "plan.json",
        base=tiny_base,
        data=folder / "rows.jsonl",
        threads=1,
    )
    path = folder / "trainer" / "socket"
    yield job, path
    ended(path)


def wait_until(said: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def busy(path: Path) -> bool:
    found = trainer_link.state(path)
    return found is not None and found.busy


def long_job(site: tuple[Job, Path], make_plan: Make, folder: Path) -> tuple[Job, Plan]:
    """The same with a plan that trains for minutes."""
    plan = make_plan(local=LONG)
    (folder / "long.json").write_text(plan.model_dump_json())
    return replace(site[0], plan=folder / "long.json"), plan


def test_it_gives_what_training_in_process_gives_and_stays(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct
) -> None:
    job, path = site
    instruction, vector = instruct(make_plan())
    here = contribution(job, instruction, vector)
    first = trainer_link.ask(path, job, instruction, vector)
    serving = trainer_link.state(path)
    again = trainer_link.ask(path, job, instruction, vector)
    for given in (first, again):
        assert given.update.tobytes() == here.update.tobytes()
        assert given.weight == here.weight
        assert given.metrics.keys() == here.metrics.keys()
        assert given.metrics["loss_sum"] == here.metrics["loss_sum"]
    after = trainer_link.state(path)
    assert serving is not None
    assert after is not None
    assert (after.pid, after.served, after.busy) == (serving.pid, 2, False)


def test_the_process_of_a_message_loads_no_torch(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, tmp_path: Path
) -> None:
    job, path = site
    instruction, vector = instruct(make_plan())
    np.save(tmp_path / "adapter.npy", vector)
    (tmp_path / "instruction.json").write_text(json.dumps(vars(instruction)))
    script = (
        "import json, sys\nimport numpy as np\n"
        "from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict\n"
        "from client import app as a\nfrom simulations.grid import FIRST_NODE, InProcessGrid\n"
        "folder, node = sys.argv[1], json.loads(sys.argv[2])\n"
        "InProcessGrid(a.app, 1)\n"
        "content = RecordDict({\n"
        "    'instruction': ConfigRecord(json.load(open(folder + '/instruction.json'))),\n"
        "    'adapter': ArrayRecord({'adapter': Array(np.load(folder + '/adapter.npy'))})})\n"
        "context = Context(1, FIRST_NODE, node, RecordDict(), {})\n"
        "reply = a.app(Message(content, FIRST_NODE, 'train.mask'), context)\n"
        "assert list(reply.content) == ['masked'], reply.content\n"
        "loaded = {'torch', 'transformers', 'datasets', 'peft', 'tokenizers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    node = {
        "client-id": job.client,
        "plan": str(job.plan),
        "base": str(job.base),
        "data-path": str(job.data),
        "trainer": str(path),
    }
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), json.dumps(node)], check=True, cwd=ROOT
    )


def test_its_refusals_are_those_of_training_in_process(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, tmp_path: Path
) -> None:
    job, path = site
    instruction, vector = instruct(make_plan())
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a private sentence", "label": "musik"}\n')
    cases: list[tuple[Job, Instruction, type[Exception]]] = [
        (replace(job, data=bad), instruction, DataError),
        (replace(job, data=tmp_path / "gone.jsonl"), instruction, DataError),
        (replace(job, base=tmp_path), instruction, ArtefactError),
        (job, replace(instruction, plan_digest="0" * 64), ArtefactError),
        (job, replace(instruction, adapter_digest="0" * 64), ArtefactError),
    ]
    for asked, told, kind in cases:
        with pytest.raises(kind) as here:
            contribution(asked, told, vector)
        with pytest.raises(kind) as there:
            trainer_link.ask(path, asked, told, vector)
        assert vars(there.value) == vars(here.value)
    assert trainer_link.ask(path, job, instruction, vector).weight == 90


def test_killed_during_a_request_it_is_started_again_by_the_next(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, tmp_path: Path
) -> None:
    job, path = site
    slow, plan = long_job(site, make_plan, tmp_path)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(trainer_link.ask, path, slow, *instruct(plan))
        wait_until(lambda: busy(path))
        killed = trainer_link.state(path)
        assert killed is not None
        os.kill(killed.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="the trainer stopped during the request"):
            running.result(30)
    assert trainer_link.state(path) is None
    assert path.exists()  # nobody could take it away
    instruction, vector = instruct(make_plan())
    given = trainer_link.ask(path, job, instruction, vector)
    assert given.update.tobytes() == contribution(job, instruction, vector).update.tobytes()
    serving = trainer_link.state(path)
    assert serving is not None
    assert serving.pid != killed.pid


def test_who_has_gone_is_not_trained_for(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, tmp_path: Path
) -> None:
    _, path = site
    slow, plan = long_job(site, make_plan, tmp_path)
    trainer_link.start(path)
    with trainer_link._connected(path) as connection:
        instruction, vector = instruct(plan)
        train = trainer_link.Train(
            client=slow.client,
            plan=str(slow.plan),
            base=str(slow.base),
            data=str(slow.data),
            threads=1,
            instruction=vars(instruction),
        )
        trainer_link.send(connection, train, vector)
        wait_until(lambda: busy(path))
    wait_until(lambda: not busy(path), 15)


def test_one_of_another_code_is_replaced(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, path = site
    before = trainer_link.start(path)
    monkeypatch.setattr(trainer_link, "code_version", lambda: "upgraded")
    assert trainer_link.ask(path, job, *instruct(make_plan())).weight == 90
    after = trainer_link.state(path)
    assert after is not None
    assert after.pid != before.pid


def test_stopped_during_a_request_it_ends_cleanly(
    site: tuple[Job, Path], make_plan: Make, instruct: Instruct, tmp_path: Path
) -> None:
    _, path = site
    slow, plan = long_job(site, make_plan, tmp_path)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(trainer_link.ask, path, slow, *instruct(plan))
        wait_until(lambda: busy(path))
        command = [sys.executable, "-m", "fedge", "client", "trainer", str(path)]
        said = subprocess.run(
            [*command, "--stop", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        with pytest.raises(MachineError, match="was stopped during the request"):
            running.result(30)
    assert json.loads(said.stdout)["serving"]["busy"] is True
    assert not path.exists()
    assert trainer_link.stop(path) is None
    done = subprocess.run(
        [*command, "--status"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "nobody serves it\n"


def test_one_is_started_however_many_ask_and_ends_when_nobody_does(tmp_path: Path) -> None:
    path = tmp_path / "own" / "socket"
    try:
        with ThreadPoolExecutor(4) as pool:
            states = list(pool.map(lambda _: trainer_link.start(path, idle=0.2), range(4)))
        assert len({state.pid for state in states}) == 1
        assert states[0].code == code_version()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        wait_until(lambda: trainer_link.state(path) is None)
    finally:
        ended(path)


def test_a_second_one_does_not_take_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "HANDOVER", 0.1)
    path = tmp_path / "own" / "socket"
    check_path(path)
    with (
        locked(beside(path, "lock")),
        pytest.raises(MachineError, match="another trainer serves it already"),
    ):
        Trainer(path, idle=1.0).serve()


def test_a_supervised_one_waits_until_the_socket_is_free(tmp_path: Path) -> None:
    path = tmp_path / "own" / "socket"
    check_path(path)
    command = [sys.executable, "-m", "fedge", "client", "trainer", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with locked(beside(path, "lock"), seconds=0) as mine:
            assert mine
            time.sleep(3)
            assert process.poll() is None
            assert trainer_link.state(path) is None
        wait_until(lambda: trainer_link.state(path) is not None)
    finally:
        process.kill()
        process.wait()


def test_one_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_link, "SILENCE", 0.2)
    (tmp_path / "own").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "own" / "socket"))
        listener.listen()
        with pytest.raises(MachineError, match="accepts, and says nothing"):
            trainer_link.state(tmp_path / "own" / "socket")


def test_one_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match="ended with code 1 at its start") as caught:
        trainer_link.start(tmp_path / "own" / "socket")
    assert str(beside(tmp_path / "own" / "socket", "log")) in caught.value.remedy


def test_its_folder_is_its_users_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "file").touch()
    for folder, fault in {
        "open": "open to other users",
        "link": "not a folder of this user's own",
        "file": "no usable folder",
        f"own/{'x' * 90}": "bytes of a socket's path",
    }.items():
        with pytest.raises(MachineError, match=fault):
            check_path(tmp_path / folder / "socket")


@pytest.mark.skipif(
    not hasattr(socket, "SO_PEERCRED") or os.geteuid() != 0, reason="takes root, and Linux"
)
def test_another_users_process_is_refused() -> None:
    name = f"\0fedge-test-{os.getpid()}"
    script = (
        "import os, socket, sys\nos.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[1]); s.recv(1)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        listener.settimeout(20)
        for user in (0, 65534):
            command = [sys.executable, "-c", script, name[1:], str(user)]
            with subprocess.Popen(command) as process:
                connection, _ = listener.accept()
                with connection:
                    if user:
                        with pytest.raises(MachineError, match="another user's"):
                            verify_peer(connection)
                    else:
                        verify_peer(connection)
            assert process.returncode == 0


def test_a_lock_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with locked(tmp_path / "lock") as mine:
            order.append(("second", mine))

    with locked(tmp_path / "lock") as mine:
        assert mine
        with locked(tmp_path / "lock", seconds=0.1) as other:
            assert not other
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.1)
        order.append(("first", mine))
    waiting.join(10)
    assert order == [("first", True), ("second", True)]
