"""Files of a run: whole or not at all."""

from pathlib import Path

import pytest

from protocol.errors import ArtefactError
from simulations.files import read_json, write_json, write_jsonl
from simulations.timings import Timings


def test_json_comes_back_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, "ü"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5, "ü"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}


def test_a_missing_file_is_the_default_and_a_damaged_one_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "a.json", {"x": 0}) == {"x": 0}
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(ArtefactError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_one_line_per_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a\nb"}, {"text": "c"}])
    assert (tmp_path / "a.jsonl").read_text() == '{"text": "a\\nb"}\n{"text": "c"}\n'


def test_times_add_up_over_processes(tmp_path: Path) -> None:
    now, date = [100.0], [1e9]
    first = Timings(tmp_path, clock=lambda: now[0], date=lambda: date[0])
    with first.part("prepare"):
        now[0] += 2.0
    now[0] += 3.5  # half a second of it belongs to no part
    first.round(1, 3.0)
    now[0], date[0] = 7.0, 2e9  # another process
    second = Timings(tmp_path, clock=lambda: now[0], date=lambda: date[0])
    now[0] += 4.25
    second.round(2, 4.0)
    assert second.parts == {"prepare": 2.0, "federated": 7.0}
    assert second.rounds == {"1": 3.0, "2": 4.0}
    assert second.total == 9.75
    assert second.table() == {"prepare": 2.0, "federated": 7.0, "other": 0.75}
    assert sum(second.table().values()) == second.total
    assert (second.started, second.ended) == (1e9, 2e9)
