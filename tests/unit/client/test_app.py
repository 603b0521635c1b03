"""The ClientApp, driven by real Flower messages over the in-process grid."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import app as app_module
from client import job as job_module
from client import opened_base as opened_base_module
from client.app import app
from client.data import Rows
from client.rows_cache import RowsCache
from client.settings import manifest_at
from client.worker import Worker
from protocol import PROTOCOL_VERSION, wire
from protocol.errors import MachineError
from protocol.exchange.plain import decode
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.secagg.roster import render_roster
from protocol.tasks.classification import METRICS
from protocol.wire import Hello, Instruction, Refusal, from_record
from simulations.grid import FIRST_NODE, InProcessGrid

Make = Callable[..., Plan]
Instruct = Callable[..., tuple[Instruction, Vector]]
PRIVATE = "a private sentence"


@pytest.fixture(autouse=True)
def _nothing_resident() -> Iterator[None]:
    opened_base_module._bases.clear()
    job_module.rows_cache = RowsCache()
    yield
    opened_base_module._bases.clear()


@pytest.fixture
def folder(tmp_path: Path, make_plan: Make, rows: Rows) -> Path:
    """plan.json and the data of partitions 0 to 2."""
    plan = make_plan()
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    for partition in range(3):
        chosen = range(partition, len(rows), 3 + partition)
        lines = [
            json.dumps({"text": rows.texts[i], "label": plan.task.labels[rows.targets[i]]})
            for i in chosen
        ]
        (tmp_path / f"client-{partition:04d}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def run_config(folder: Path, tiny_base: Path) -> dict[str, Any]:
    return {
        "plan": str(folder / "plan.json"),
        "base": str(tiny_base),
        "data-pattern": str(folder / "client-{partition:04d}.jsonl"),
        "threads": 1,
    }


def content(instruction: Instruction, vector: np.ndarray) -> RecordDict:
    return RecordDict(
        {
            wire.INSTRUCTION: ConfigRecord(wire.to_record(instruction)),
            wire.ADAPTER: ArrayRecord({"adapter": Array(vector)}),
        }
    )


def ask(run_config: dict[str, Any], sent: RecordDict, kind: str = "train.mask") -> list[Message]:
    grid = InProcessGrid(app, 3, run_config=run_config)
    nodes = list(grid.get_node_ids())
    return list(grid.send_and_receive([Message(sent, node, kind) for node in nodes]))


def refusal(message: Message) -> Refusal:
    assert not message.has_error()
    assert list(message.content) == [wire.REPLY]
    return from_record(Refusal, message.content[wire.REPLY])


def test_hello_names_client_base_and_version(run_config: dict[str, Any], make_plan: Make) -> None:
    replies = ask(run_config, RecordDict(), "query.hello")
    expected = [
        Hello(
            client=f"client-{i:04d}", base=make_plan().base.fingerprint, protocol=PROTOCOL_VERSION
        )
        for i in range(3)
    ]
    assert [from_record(Hello, reply.content[wire.REPLY]) for reply in replies] == expected


def test_hello_loads_no_torch(tiny_base: Path) -> None:
    script = (
        "import sys; from flwr.app import Context, RecordDict; import client.app as a\n"
        "context = Context(1, 2, {'partition-id': 1}, RecordDict(), {'base': sys.argv[1]})\n"
        "assert a._hello(context)['reply']['client'] == 'client-0001'\n"
        "assert not {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
    )
    root = Path(app_module.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, str(tiny_base)], check=True, cwd=root)


def test_a_round_answers_with_masked_bytes_and_leaves_the_message_alone(
    run_config: dict[str, Any], make_plan: Make, instruct: Instruct
) -> None:
    plan = make_plan()
    instruction, vector = instruct(plan)
    sent = content(instruction, vector)
    replies = ask(run_config, sent)
    size = Recipe(plan=plan, manifest=manifest_at(Path(run_config["base"]))).layout.size
    decoded = []
    for reply in replies:
        assert list(reply.content) == [wire.MASKED]
        masked = reply.content[wire.MASKED]["masked"].numpy()
        assert masked.dtype == np.uint8
        decoded.append(decode("x", masked.tobytes(), size=size, max_weight=1000, metrics=METRICS))
    assert [given.weight for given in decoded] == [30, 23, 18]
    assert len({given.update.tobytes() for given in decoded}) == 3
    assert sent[wire.INSTRUCTION] == content(instruction, vector)[wire.INSTRUCTION]
    assert np.array_equal(sent[wire.ADAPTER]["adapter"].numpy(), vector)
    again = [
        reply.content[wire.MASKED]["masked"].numpy().tobytes() for reply in ask(run_config, sent)
    ]
    updates = [
        decode("x", message, size=size, max_weight=1000, metrics=METRICS).update.tobytes()
        for message in again
    ]
    assert updates == [given.update.tobytes() for given in decoded]


def test_refusals_carry_whose_fault_cause_and_remedy(
    run_config: dict[str, Any],
    make_plan: Make,
    instruct: Instruct,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instruction, vector = instruct(make_plan())
    (folder / "client-0001.jsonl").write_text(f'{{"text": "{PRIVATE}", "label": "musik"}}\n')
    (folder / "client-0002.jsonl").unlink()
    good, label, missing = ask(run_config, content(instruction, vector))
    assert list(good.content) == [wire.MASKED]
    assert refusal(label).kind == "data"
    assert refusal(label).cause == "line 1: a label that is not in the plan"
    assert refusal(missing).kind == "data"
    for reply in (label, missing):  # the owner's words and folders stay at the owner's
        assert not any(word in str(reply.content) for word in (PRIVATE, "musik", str(folder)))
    assert "client-0001.jsonl: line 1: the label 'musik'" in caplog.text
    other, other_vector = instruct(make_plan(rounds=99))
    for reply in ask(run_config, content(other, other_vector)):
        assert refusal(reply).kind == "artefact"
        assert "runs plan" in refusal(reply).cause


def test_malformed_messages_are_refused(
    run_config: dict[str, Any], make_plan: Make, instruct: Instruct
) -> None:
    instruction, vector = instruct(make_plan())
    good = content(instruction, vector)
    fields = dict(good[wire.INSTRUCTION])
    array = good[wire.ADAPTER]["adapter"]
    broken = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=b"not npy")
    pickled = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=pickled_npy())
    bad = {
        "a record is missing": RecordDict({wire.ADAPTER: good[wire.ADAPTER]}),
        "one array named": with_array(good, {"adapter": array, "more": array}),
        "cannot be decoded": with_array(good, {"adapter": broken}),
        "be decoded": with_array(good, {"adapter": pickled}),
        "is float64 with 1": with_array(good, {"adapter": Array(vector.astype(np.float64))}),
        "with 2 dimensions": with_array(good, {"adapter": Array(vector[None])}),
        "field `extra`": with_fields(good, fields | {"extra": 1}),
        "field `round`": with_fields(good, fields | {"round": "1"}),
    }
    for expected, sent in bad.items():
        answer = refusal(ask(run_config, sent)[0])
        assert answer.kind == "artefact", expected
        assert expected in answer.cause


def with_array(good: RecordDict, arrays: dict[str, Array]) -> RecordDict:
    return RecordDict({wire.INSTRUCTION: good[wire.INSTRUCTION], wire.ADAPTER: ArrayRecord(arrays)})


def with_fields(good: RecordDict, fields: dict[str, Any]) -> RecordDict:
    return RecordDict({wire.INSTRUCTION: ConfigRecord(fields), wire.ADAPTER: good[wire.ADAPTER]})


def pickled_npy() -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_settings_that_are_missing_or_wrong(
    run_config: dict[str, Any], make_plan: Make, instruct: Instruct, folder: Path
) -> None:
    sent = content(*instruct(make_plan()))
    (folder / "broken.json").write_text("{")
    (folder / "broken.toml").write_text("name = ")
    cases = [
        ({"plan": ""}, "machine", "`plan` is not set"),
        ({"plan": str(folder / "gone.toml")}, "plan", "cannot be read"),
        ({"plan": str(folder / "broken.json")}, "plan", "not valid JSON"),
        ({"plan": str(folder / "broken.toml")}, "plan", "not valid TOML"),
        ({"base": str(folder)}, "artefact", "manifest.json"),
        ({"data-pattern": ""}, "machine", "this node has no data"),
        ({"data-pattern": "{shard}.jsonl"}, "plan", "is not a path with"),
    ]
    for change, kind, expected in cases:
        answer = refusal(ask(run_config | change, sent)[0])
        assert (answer.kind, expected in answer.cause) == (kind, True), answer


def test_a_node_names_itself_and_its_data(
    run_config: dict[str, Any], make_plan: Make, instruct: Instruct, folder: Path, tiny_base: Path
) -> None:
    node = {
        "client-id": "clinic-a", "data-path": str(folder / "client-0002.jsonl"),
        "base": str(tiny_base), "plan": str(folder / "plan.json"),
    }  # fmt: skip
    context = Context(1, FIRST_NODE, node, RecordDict(), {})
    InProcessGrid(app, 1)  # gives this process the identity that Message needs
    hello = app(Message(RecordDict(), FIRST_NODE, "query.hello"), context)
    assert from_record(Hello, hello.content[wire.REPLY]).client == "clinic-a"
    trained = app(Message(content(*instruct(make_plan())), FIRST_NODE, "train.mask"), context)
    assert list(trained.content) == [wire.MASKED]
    nameless = Context(1, FIRST_NODE, {}, RecordDict(), run_config)
    answer = app(Message(RecordDict(), FIRST_NODE, "query.hello"), nameless)
    assert refusal(answer).kind == "machine"


def test_a_run_does_not_say_how_many_threads_a_site_uses(
    run_config: dict[str, Any], folder: Path, tiny_base: Path
) -> None:
    own = {
        "client-id": "a", "identity": str(folder / "key"), "plan": run_config["plan"],
        "base": str(tiny_base), "data-path": str(folder / "client-0000.jsonl"), "threads": 0,
    }  # fmt: skip
    run = {"threads": 100_000}
    assert job_module.job_of(Context(1, 2, own, RecordDict(), run)).threads == 0
    assert job_module.job_of(Context(1, 2, {**own, "threads": 3}, RecordDict(), run)).threads == 3
    for wrong in (100_000, -1, "many", "0000009999"):
        context = Context(1, 2, {"partition-id": 0}, RecordDict(), run_config | {"threads": wrong})
        with pytest.raises(MachineError, match="`threads` is"):
            job_module.job_of(context)


def test_a_run_does_not_say_what_memory_a_site_gives(
    run_config: dict[str, Any], folder: Path, tiny_base: Path
) -> None:
    own = {
        "client-id": "a", "identity": str(folder / "key"), "plan": run_config["plan"],
        "base": str(tiny_base), "data-path": str(folder / "client-0000.jsonl"), "expand-mib": 0,
    }  # fmt: skip
    run = {"expand-mib": 4096}
    assert job_module.job_of(Context(1, 2, own, RecordDict(), run)).expand_mib == 0
    given = Context(1, 2, {**own, "expand-mib": 64}, RecordDict(), run)
    assert job_module.job_of(given).expand_mib == 64
    for wrong in (2**24 + 1, -1, "all"):
        with pytest.raises(MachineError, match="`expand-mib` is"):
            job_module.job_of(
                Context(1, 2, {"partition-id": 0}, RecordDict(), run_config | {"expand-mib": wrong})
            )


def test_no_folder_of_this_machine_leaves(run_config: dict[str, Any], folder: Path) -> None:
    home = folder / "Jane Doe" / "ward 3"
    home.mkdir(parents=True)
    for gone in (home / "plan.toml", home / "more" / "plan.toml"):
        answer = refusal(ask(run_config | {"plan": str(gone)}, RecordDict())[0])
        assert "Jane" not in answer.cause
        assert "ward" not in answer.cause
        assert "plan.toml: cannot be read" in answer.cause


def test_of_an_unexpected_failure_only_the_type_leaves(
    run_config: dict[str, Any], make_plan: Make, instruct: Instruct,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def explode(*_: object, **__: object) -> None:
        raise KeyError(PRIVATE)

    monkeypatch.setattr(Worker, "contribute", explode)
    with caplog.at_level(logging.ERROR, logger="fedge.client"):
        answer = refusal(ask(run_config, content(*instruct(make_plan())))[0])
    assert answer.kind == "internal"
    assert "KeyError" in answer.cause
    assert PRIVATE not in answer.cause + answer.remedy
    assert "Traceback" in caplog.text


def test_rows_are_read_once_until_the_file_changes(
    run_config: dict[str, Any], make_plan: Make, folder: Path
) -> None:
    cache = RowsCache()
    worker = Worker(make_plan(), Path(run_config["base"]))
    path = folder / "client-0000.jsonl"
    first = cache.get(path, worker)
    assert cache.get(path, worker) is first
    path.write_text("\n".join(path.read_text().splitlines()[:5]))
    assert len(cache.get(path, worker)) == 5
    other = Worker(
        make_plan(task={"labels": ["timer", "music", "light"], "max_length": 16}),
        Path(run_config["base"]),
    )
    assert cache.get(path, other).targets.tolist() != cache.get(path, worker).targets.tolist()


def test_the_rows_kept_are_bounded(
    run_config: dict[str, Any], make_plan: Make, folder: Path
) -> None:
    worker = Worker(make_plan(), Path(run_config["base"]))
    paths = [folder / f"client-{i:04d}.jsonl" for i in range(3)]
    large = RowsCache()
    tokens = [len(large.get(path, worker).ids) for path in paths]
    assert len(large) == 3
    small = RowsCache(budget=tokens[1] + tokens[2])
    kept = [small.get(path, worker) for path in paths]
    assert len(small) == 2
    assert small.get(paths[2], worker) is kept[2]
    assert small.get(paths[0], worker) is not kept[0]


@pytest.mark.parametrize("exchange", ["plain", "secagg"])
def test_a_client_that_the_plan_does_not_name_reads_no_row(
    folder: Path, run_config: dict[str, Any], make_plan: Make, instruct: Instruct, exchange: str
) -> None:
    cohort = {"size": 3, "quorum": 3, "clients": ["client-0001", "client-0002", "client-0003"]}
    plan = make_plan(cohort=cohort, secrecy={"exchange": exchange})
    (folder / "plan.json").write_text(plan.model_dump_json())
    (folder / "client-0000.jsonl").unlink()
    sent = content(*instruct(plan))
    kind = "train.mask"
    if exchange == "secagg":
        names = ("client-0000", *cohort["clients"])
        roster = {name: bytes([number] * 32) for number, name in enumerate(names)}
        (folder / "roster.json").write_text(render_roster(roster))
        run_config |= {"roster": str(folder / "roster.json")}
        sent[wire.SECAGG] = ArrayRecord({"message": Array(np.zeros(1, np.uint8))})
        kind = "train.advertise"
    said = refusal(ask(run_config, sent, kind)[0])
    assert (said.kind, "does not name client-0000" in said.cause) == ("plan", True)
