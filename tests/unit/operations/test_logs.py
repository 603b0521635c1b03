"""Log lines: where something failed stays, what somebody's data or a key might be does not."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.failures import contribution_or_zeros
from operations import logs
from operations.logs import JsonLog, Redactor, last_refusal
from protocol.errors import DataError
from protocol.exchange import Contribution
from protocol.tasks.regression import Regression


def redacted(text: str) -> list[tuple[str, str]]:
    redactor = Redactor()
    return [found for line in text.splitlines() if (found := redactor.line(line))]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("\x1b[92mINFO \x1b[0m:      Sent successfully", ("INFO", "Sent successfully")),
        ("WARNING : refused: /d/rows.jsonl: line 3: the label 'HIV' is not listed", None),
        (
            "ERROR : token 8b1f6a77c1e64a1fb2a4d1b5a8e3f0aa is wrong",
            ("ERROR", "token 8b1f6a77… is wrong"),
        ),
        ("plain words", ("INFO", "plain words")),
        ("", None),
    ],
)
def test_lines(line: str, found: tuple[str, str] | None) -> None:
    made = redacted(line)
    if found:
        assert made == [found]
    elif made:
        assert "HIV" not in made[0][1]
        assert "line 3" in made[0][1]


def test_a_number_of_a_row_stays_out(tmp_path: Path) -> None:
    """Whatever a site's message says of its rows stands in quotes, which the log leaves out."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "target": 424242}\n')
    task = Regression(kind="regression", low=0.0, high=5.0)
    with pytest.raises(DataError) as refused:
        task.rows(rows)
    assert "424242" in str(refused.value)
    assert "424242" not in redacted(f"WARNING : refused: {refused.value}")[0][1]


def test_a_traceback_keeps_places_and_types() -> None:
    def fail(text: str) -> None:
        raise ValueError(f"cannot use {text}")

    try:
        fail("patient 17")
    except ValueError:
        text = logging.Formatter().format(
            logging.LogRecord("x", 40, "f", 1, "boom", None, __import__("sys").exc_info())
        )
    made = redacted(text + "\nINFO : next")
    assert made[-2:] == [("ERROR", "ValueError"), ("INFO", "next")]
    assert any("test_logs.py" in message and "in fail" in message for _, message in made)
    assert "patient" not in json.dumps(made)
    assert "raise" not in json.dumps(made)


def formatted(error: Exception) -> str:
    try:
        raise error
    except Exception:
        return traceback.format_exc()


def test_a_message_of_many_lines_is_left_out_whole() -> None:
    error = ValueError("a row is wrong:\nJane Doe, HIV\n  positive\nINFOrmation")
    error.add_note("Jane Doe again")
    made = redacted(formatted(error) + "INFO : next\nplain words")
    assert "Jane" not in json.dumps(made)
    assert "positive" not in json.dumps(made)
    assert made[-3:] == [("ERROR", "ValueError"), ("INFO", "next"), ("INFO", "plain words")]


def test_a_traceback_behind_a_level_is_one_too() -> None:
    text = formatted(ValueError("of Jane Doe\nand John"))  # as uvicorn writes it
    made = redacted(f"ERROR:    {text}INFO:     next")
    assert made[0] == ("ERROR", "Traceback")
    assert made[-2:] == [("ERROR", "ValueError"), ("INFO", "next")]
    assert "raise" not in json.dumps(made)
    assert "J" not in "".join(message for _, message in made if not message.startswith("File"))


def test_a_group_of_exceptions_shows_no_message() -> None:
    def fail(text: str) -> None:
        ERROR = text  # a line of source that looks like one of a log
        raise KeyError(ERROR)

    errors = []
    for text in ("Jane Doe", "two\nlines of John"):
        try:
            fail(text)
        except KeyError as error:
            errors.append(error)
    group = ExceptionGroup("some of Jane Doe", errors)
    formatted(group)  # gives it a traceback
    chained = RuntimeError("Jane Doe once more")
    chained.__cause__ = group
    for error in (group, chained):
        made = redacted(formatted(error) + "WARNING : next")
        assert "Jane" not in json.dumps(made)
        assert "John" not in json.dumps(made)
        assert made[-1] == ("WARNING", "next")
        assert any("in fail" in message for _, message in made)
        assert ("ERROR", "Traceback") in made


@given(secret=st.binary(min_size=32, max_size=32), text=st.text("abc xyz:=", max_size=30))
def test_no_key_is_written(secret: bytes, text: str) -> None:
    key = secret.hex()
    for level, message in redacted(f"INFO : {text} {key}\nkey={key}"):
        assert level == "INFO"
        assert key[:24] not in message


def test_the_last_refusal_since_the_start_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_refusal(path) is None
    log = JsonLog(path, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    log.write("supervisor", "INFO", "started", pid=1)
    for text in ("refused: first", "refused: another plan; name it", "Sent successfully"):
        level, message = Redactor().line(text) or ("", "")
        log.write("apps", level, message)
    assert json.loads(path.read_text().splitlines()[1])["level"] == "WARNING"
    assert last_refusal(path) == ("2026-03-01T00:00:00.000+00:00", "another plan; name it")
    log.write("supervisor", "INFO", "started", pid=2)
    with path.open("a") as file:
        file.write("[]\nhalf a li")
    assert last_refusal(path) is None


def test_what_failed_behind_a_masked_answer_is_told_at_home_without_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The coordinator is not told; `fedge client status` is where the owner finds it."""

    def failing(error: Exception) -> list[tuple[str, str]]:
        def contribute() -> Contribution:
            raise error

        caplog.clear()
        contribution_or_zeros(contribute, size=3)
        redactor = Redactor()
        lines = [redactor.line(line) for line in caplog.messages[0].split("\n")]
        return [line for line in lines if line]

    path = tmp_path / "log.jsonl"
    log = JsonLog(path, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    for level, message in failing(DataError("rows.jsonl: line 3: not valid JSON", "mend it")):
        log.write("supernode", level, message)
    found = last_refusal(path)
    assert found is not None
    assert found[1] == "contributed zeros: rows.jsonl: line 3: not valid JSON; mend it"
    (_, first), *places, (_, last) = failing(KeyError("a private sentence"))
    assert first == "contributed zeros: unexpected KeyError"
    assert last == "KeyError"
    assert all(message.startswith(("Traceback", "File ")) for _, message in places)
    assert "private" not in str(places) + caplog.text


def test_a_log_is_json_lines_below_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 2000)
    path = tmp_path / "a" / "log.jsonl"
    log = JsonLog(path, lambda: datetime(2026, 3, 1, tzinfo=UTC))
    for number in range(200):
        log.write("link", "INFO", f"line {number}", pid=number)
    files = sorted(tmp_path.rglob("*.jsonl"))
    assert len(files) == 1 + logs.KEEP
    assert all(file.stat().st_size < 2300 for file in files)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {
        "time": "2026-03-01T00:00:00.000+00:00",
        "component": "link",
        "level": "INFO",
        "message": "line 199",
        "pid": 199,
    }
