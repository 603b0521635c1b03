"""A release that answers with numbers, on a device."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from base_model.release import release_adapter
from edge_runtime.answer_options import AnswerOptions
from edge_runtime.backends.encoder import EncoderBackend
from edge_runtime.base import EdgeBase
from edge_runtime.calibrating import calibrate_release
from edge_runtime.commands import app
from edge_runtime.http_server import App
from edge_runtime.probe import check_health, read_probe
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.single import SingleService
from protocol.errors import ArtefactError, DataError, DeliveryError
from protocol.peft_format import RELEASE_FILE, parse_release

TEXTS = ["turn on the light", "play music", "light", "stop the timer now"]
TASK = {"kind": "regression", "low": -10.0, "high": 30.0, "max_length": 16}


@pytest.fixture(scope="module")
def numbers(write_adapter: Any, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released adapter whose head is small, so that answers lie within the range and outside."""
    folder = write_adapter(tmp_path_factory.mktemp("numbers") / "a", task=TASK)
    note = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    assert note.parity is not None
    assert (note.labels, note.range, note.outputs) == ([], (-10.0, 30.0), 1)
    note, quality = calibrate_release(folder, tiny_base, TEXTS, [0.0, 1.0, 0.5, 0.5])
    assert note.calibration is None  # there are no probabilities
    assert 0 <= quality <= 1
    return folder


def post(app: App, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"path": path, "method": "POST", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_answers_are_values_within_the_range(tiny_base: Path, numbers: Path) -> None:
    runtime = EdgeRuntime(EdgeBase.open(tiny_base))
    runtime.activate(numbers)
    shares = runtime.logits(TEXTS)
    assert shares.shape == (4, 1)
    found = [answer.value for answer in runtime.infer(TEXTS)]
    assert found == pytest.approx((-10 + 40 * np.clip(shares[:, 0], 0, 1)).tolist())


def test_labels_cannot_be_wanted(tiny_base: Path, numbers: Path) -> None:
    service = SingleService(tiny_base, numbers)
    assert [
        answer.form(AnswerOptions()).keys() for answer in service.classify(TEXTS).predictions
    ] == [{"value"}] * 4
    for wanted in (AnswerOptions(top=2), AnswerOptions(reject_below=0.5)):
        with pytest.raises(DataError, match="has no labels"):
            service.classify(TEXTS, wanted)


def test_each_task_has_its_address(tiny_base: Path, numbers: Path, released: Any) -> None:
    app = App(SingleService(tiny_base, numbers))
    status, said = post(app, "/v1/predict", {"texts": TEXTS})
    assert status == 200
    assert [list(answer) for answer in said["answers"]] == [["value"]] * 4
    status, said = post(app, "/v1/predict", {"texts": TEXTS, "top": 2})
    assert (status, said["error"]["code"]) == (422, "request.form")
    status, said = post(app, "/v1/classify", {"texts": TEXTS})
    assert (status, said["error"]["code"]) == (409, "request.task")
    assert "/v1/predict" in said["error"]["cause"]
    labels = App(SingleService(tiny_base, released["a"]))
    assert post(labels, "/v1/classify", {"texts": TEXTS})[0] == 200
    status, said = post(labels, "/v1/predict", {"texts": TEXTS})
    assert (status, said["error"]["code"]) == (409, "request.task")


def probe(folder: Path, **changes: Any) -> Path:
    document = {"format": 1, "least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 5000}
    path = folder / "probe.json"
    path.write_text(json.dumps(document | changes))
    return path


def test_a_probe_knows_how_far_off_values_may_be(
    tiny_base: Path, numbers: Path, released: Any, tmp_path: Path
) -> None:
    base = EdgeBase.open(tiny_base)
    runtime = EdgeRuntime(base)
    runtime.activate(numbers)
    first, second = (answer.value for answer in runtime.infer(TEXTS[:2]))
    (tmp_path / "rows.csv").write_text(f"text,v\n{TEXTS[0]},{first + 0.5}\n{TEXTS[1]},{second}\n")
    in_file = {"file": "rows.csv", "value": "v"}
    health = check_health(
        numbers,
        EncoderBackend(EdgeRuntime(base)),
        read_probe(probe(tmp_path, rows=in_file, within=0.6, least_correct=2)),
    )
    assert (health.correct, health.rows) == (2, 2)
    with pytest.raises(DeliveryError, match=r"probe\.labels: 1 of 2 values are right"):
        check_health(
            numbers,
            EncoderBackend(EdgeRuntime(base)),
            read_probe(probe(tmp_path, rows=in_file, within=0.1, least_correct=2)),
        )
    with pytest.raises(DeliveryError, match="answers with labels, the probe has values"):
        check_health(
            released["a"],
            EncoderBackend(EdgeRuntime(base)),
            read_probe(probe(tmp_path, rows=in_file, within=1.0)),
        )
    labels = [{"text": TEXTS[0], "label": "light"}]
    with pytest.raises(DeliveryError, match="answers with values, the probe has labels"):
        check_health(
            numbers, EncoderBackend(EdgeRuntime(base)), read_probe(probe(tmp_path, rows=labels))
        )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rows": [{"text": "a", "value": 1.0}]}, "belong together"),
        ({"rows": [{"text": "a", "label": "x"}], "within": 1.0}, "belong together"),
        ({"rows": [{"text": "a", "label": "x", "value": 1.0}]}, "either a label or a value"),
        ({"rows": [{"text": "a"}]}, "either a label or a value"),
        (
            {"rows": [{"text": "a", "label": "x"}, {"text": "a", "value": 1.0}], "within": 1.0},
            "some rows have labels",
        ),
    ],
)
def test_a_probe_has_labels_or_values(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ArtefactError, match=fault):
        read_probe(probe(tmp_path, **changes))


def test_a_release_of_a_task_that_is_not_known_here_is_refused(
    tiny_base: Path, numbers: Path, tmp_path: Path
) -> None:
    note = parse_release((numbers / RELEASE_FILE).read_text(), source="x")
    (tmp_path / RELEASE_FILE).write_text(
        note.model_copy(update={"task": "regresion"}).model_dump_json()
    )
    for name in note.files:
        (tmp_path / name).write_bytes((numbers / name).read_bytes())
    with pytest.raises(ArtefactError, match=r"`regresion`, .* nearest is `regression`"):
        EdgeRuntime(EdgeBase.open(tiny_base)).activate(tmp_path)


PAIRS = [("turn on the light", "play music"), ("light", "stop the timer now")]


@pytest.fixture(scope="module")
def pairs(write_adapter: Any, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released adapter for pairs of texts."""
    task = {"labels": ["no", "perhaps", "yes"], "text_pair": "other", "max_length": 16}
    folder = write_adapter(tmp_path_factory.mktemp("pairs") / "a", task=task)
    assert release_adapter(folder, tiny_base, texts=PAIRS, bound=1e-4).pairs
    note, _ = calibrate_release(folder, tiny_base, PAIRS, [0, 1])
    assert note.calibration is not None
    return folder


def test_pairs_and_single_texts_are_not_taken_for_each_other(
    tiny_base: Path, pairs: Path, released: Any
) -> None:
    service = SingleService(tiny_base, pairs)
    assert len(service.classify(PAIRS).predictions) == 2
    for texts in (TEXTS, [*PAIRS, "a text"]):
        with pytest.raises(DataError, match="answers pairs of texts"):
            service.classify(texts)
    with pytest.raises(DataError, match="answers single texts"):
        SingleService(tiny_base, released["a"]).classify(PAIRS)


def test_pairs_over_http(tiny_base: Path, pairs: Path) -> None:
    service = SingleService(tiny_base, pairs)
    server = App(service)
    firsts, seconds = map(list, zip(*PAIRS, strict=True))
    status, said = post(server, "/v1/classify", {"texts": firsts, "text_pairs": seconds})
    expected = [answer.form(AnswerOptions()) for answer in service.classify(PAIRS).predictions]
    assert (status, said["answers"]) == (200, expected)
    for body, cause in (
        ({"texts": firsts}, "answers pairs"),
        ({"texts": firsts, "text_pairs": seconds[:1]}, "as many as there are texts"),
        ({"texts": firsts, "text_pairs": []}, "text_pairs"),
    ):
        status, said = post(server, "/v1/classify", body)
        assert (status, said["error"]["code"]) == (422, "request.form")
        assert cause in said["error"]["cause"]


def test_pairs_on_the_command_line(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    def infer(*arguments: object) -> Any:
        options = ["infer", "--base", tiny_base, "--adapter", pairs, "--json", *arguments]
        return CliRunner().invoke(app, list(map(str, options)))

    given = [word for pair in PAIRS for word in (pair[0], "--pair", pair[1])]
    answers = json.loads(infer(*given).stdout)
    assert [(row["text"], row["text_pair"]) for row in answers] == PAIRS
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "".join(f"{first},{second}\n" for first, second in PAIRS))
    in_file = ("--file", path, "--column", "a", "--pair-column", "b")
    assert json.loads(infer(*in_file).stdout) == answers
    for odd, fault in (
        (("one", "two", "--pair", "three"), "2 texts and 1 --pair"),
        (("one",), "answers pairs"),
        (("--file", path, "--column", "a"), "answers pairs"),
    ):
        done = infer(*odd)
        assert isinstance(done.exception, DataError)
        assert fault in done.exception.cause


def test_a_probe_of_pairs(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    base = EdgeBase.open(tiny_base)
    runtime = EdgeRuntime(base)
    runtime.activate(pairs)
    label = runtime.infer(PAIRS)[0].label
    row = {"text": PAIRS[0][0], "text_pair": PAIRS[0][1], "label": label}
    assert (
        check_health(
            pairs, EncoderBackend(EdgeRuntime(base)), read_probe(probe(tmp_path, rows=[row]))
        ).correct
        == 1
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    in_file = {"file": "rows.jsonl", "text_pair": "text_pair"}
    assert (
        check_health(
            pairs, EncoderBackend(EdgeRuntime(base)), read_probe(probe(tmp_path, rows=in_file))
        ).correct
        == 1
    )
    single = read_probe(probe(tmp_path, rows=[{"text": "a", "label": label}]))
    with pytest.raises(DeliveryError, match="answers pairs"):
        check_health(pairs, EncoderBackend(EdgeRuntime(base)), single)
    with pytest.raises(ArtefactError, match="some rows are pairs"):
        read_probe(probe(tmp_path, rows=[row, {"text": "a", "label": label}]))
