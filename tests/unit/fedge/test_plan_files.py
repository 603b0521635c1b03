"""Plans as files: what is written is read, and what nobody would read is not written. (P-1.7)"""

from __future__ import annotations

from pathlib import Path

import pytest

from fedge import plan_files
from fedge.heads import name_head
from fedge.plan_files import write_plan
from fedge.plans import plan_to_start_from, read_manifest, read_plan
from protocol.documents import MOST_BYTES
from protocol.encoding import base64_text
from protocol.errors import PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from


@pytest.mark.parametrize("name", ["p.toml", "p.json"])
def test_a_plan_is_written_as_its_name_says_or_not_at_all_where_nobody_would_read_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [base64_text(bytes(65_536)) for _ in range(20)]
    labels = [f"label {number}" for number in range(20)]
    document = plan_to_start_from("0" * 64).model_dump(mode="json")
    document |= {"task": {"labels": labels}, "head": {"rows": rows, "scale": 1.0}}
    plan, path = plan_from(document, source="t"), tmp_path / name
    if name == "p.toml":
        with pytest.raises(PlanError, match=r"no more than 1,048,576 .* are read .*p\.json"):
            write_plan(path, plan)
        assert not path.exists()
    else:
        write_plan(path, plan)
        assert read_plan(path) == plan
        size = path.stat().st_size
        path.unlink()
        monkeypatch.setattr(plan_files, "MOST_BYTES", size)
        write_plan(path, plan)
        path.unlink()
        monkeypatch.setattr(plan_files, "MOST_BYTES", size - 1)
        with pytest.raises(PlanError, match="fewer labels"):
            write_plan(path, plan)
        assert not path.exists()


def test_a_plan_that_no_reader_takes_is_illegal_and_one_byte_less_is_read(tmp_path: Path) -> None:
    """The bound of documents is one constant for who writes and who reads. (P-1.7)"""
    document = plan_to_start_from("0" * 64).model_dump(mode="json")
    rows = [base64_text(bytes(41_838)) for _ in range(300)]
    head = {"rows": rows, "scale": 1.0}

    def plan_of(bytes_more: int) -> Plan:
        labels = [f"{number:03d}" for number in range(300)]
        more = [min(197, max(0, bytes_more - 197 * at)) for at in range(300)]
        labels = [label + "x" * count for label, count in zip(labels, more, strict=True)]
        return plan_from(document | {"task": {"labels": labels}, "head": head}, source="t")

    missing = MOST_BYTES - len(plan_of(0).render())
    assert 0 < missing < 300 * 197
    fits, beyond = plan_of(missing), plan_of(missing + 1)
    assert len(fits.render()) == MOST_BYTES
    path = tmp_path / "plan.json"
    path.write_text(fits.render())
    assert read_plan(path).digest == fits.digest
    assert not [f for f in check(fits) if f.field == "head.rows"]
    path.write_text(beyond.render())
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(path)
    assert [f.severity for f in check(beyond) if f.field == "head.rows"] == ["error"]


def test_a_head_that_clients_would_refuse_is_not_written(tiny_base: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "named.json"
    document = plan_to_start_from(read_manifest(tiny_base).fingerprint).model_dump(mode="json")
    document["task"] = {"labels": ["play_music", "the_light"]}
    write_plan(plan, plan_from(document, source="t"))
    with pytest.raises(PlanError, match=r"`head.scale`: .* the most of a number is 64 "):
        name_head(plan, tiny_base, out, length=1000.0, as_json=True)
    assert not out.exists()
    name_head(plan, tiny_base, out, as_json=True)
    head = read_plan(out).head
    assert head is not None
    assert len(head.rows) == 2
