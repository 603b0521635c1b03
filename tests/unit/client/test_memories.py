"""A site's memories are read from where they were left, or from their end: they say what reading all of them says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.journal import PIECE, Journal, Mark
from client.ledger import FileLedger
from client.openings import FileOpenings, Line
from protocol.errors import MachineError
from protocol.privacy.ledger import Tally
from protocol.secagg.openings import Opening
from tests.unit.protocol.privacy.test_ledger import entry

lines = st.lists(
    st.text("ab é{}", max_size=40).filter(lambda text: text.strip() != ""), max_size=30
)


@settings(max_examples=50)
@given(lines, st.integers(0, 30))
def test_a_journal_is_read_on_and_backwards(kept: list[str], cut: int) -> None:
    with TemporaryDirectory() as folder:
        journal, read = Journal(Path(folder) / "j", "the journal"), list[str]()
        mark = Mark()
        for at, line in enumerate(kept):
            journal.append(line, lambda: None)
            if at == cut:
                _, read, mark = journal.since(mark)
        _, new, after = journal.since(mark)
        assert read + new == kept
        assert journal.since(after) == (True, [], after)
        assert list(journal.backwards()) == kept[::-1]


def test_backwards_over_pieces(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "the journal")
    kept = [f"{number} " + "é" * (number * 37 % 5000) for number in range(40)]
    (tmp_path / "j").write_text("".join(f"{line}\n" for line in kept) + "torn")
    assert (tmp_path / "j").stat().st_size > 3 * PIECE
    assert list(journal.backwards()) == ["torn", *kept[::-1]]
    assert list(Journal(tmp_path / "none", "x").backwards()) == []


@pytest.mark.parametrize("how", ["replaced", "shorter", "edited", "gone"])
def test_another_file_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    path = tmp_path / "j"
    journal = Journal(path, "the journal")
    for line in ("one", "two"):
        journal.append(line, lambda: None)
    _, _, mark = journal.since(Mark())
    content = {
        "replaced": "old\ntwo\nmore\n",
        "shorter": "one\n",
        "edited": "eno\ntwo\n",
        "gone": "",
    }
    if how == "replaced":
        (tmp_path / "n").write_text(content[how])
        os.replace(tmp_path / "n", path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_text(content[how])
        os.utime(path, ns=(1, 1))
    same, new, _ = journal.since(mark)
    assert (same, new) == (False, content[how].splitlines())


def opening(plan: int, number: int, seq: int, adapter: int) -> Line:
    def digest(*parts: object) -> bytes:
        return hashlib.sha256(repr(parts).encode()).digest()

    return Line(
        plan=digest("plan", plan).hex(),
        opening=Opening(
            sid=digest("sid", plan),
            seq=seq,
            rid=digest("rid", plan, number, seq),
            round=number,
            instruction=digest("i", number),
            adapter=digest("adapter", adapter).hex(),
            alive=digest("alive", plan, number),
        ),
    )


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=25
)


@settings(max_examples=30)  # a line is flushed to disk
@given(steps)
def test_openings_say_what_all_lines_say(drawn: list[tuple[int, int, int, bool]]) -> None:
    """Also where a process reads on, and where others have written in between."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "o"
        rounds, every = [1, 1, 1], list[Line]()
        for seq, (plan, further, adapter, ask) in enumerate(drawn):
            rounds[plan] += further
            every.append(opening(plan, rounds[plan], seq, adapter))
            FileOpenings(path).note(every[-1], lambda: None)
            if ask or seq == len(drawn) - 1:
                _compare(FileOpenings(path), every)


def _compare(memory: FileOpenings, every: list[Line]) -> None:
    for number in range(3):
        plan = opening(number, 0, 0, 0).plan
        mine = [line.opening for line in every if line.plan == plan]
        last = max((each.round for each in mine), default=0)
        assert memory.last(plan) == [each for each in mine if each.round == last]
        rids = [each.rid.hex() for each in mine[::2]]
        assert memory.of_sums(plan, [*rids, "00" * 32]) == mine[::2]
        vain = {each.rid.hex(): each.round for each in mine[::2]} | {"11" * 32: 99}
        summed = {each.round for each in mine if each.rid.hex() not in vain}
        assert memory.rounds_within(plan, vain) == {each.round for each in mine} - summed
    for adapter in range(4):
        digest = opening(0, 0, 0, adapter).opening.adapter
        assert memory.of_adapter(digest) == [e for e in every if e.opening.adapter == digest]


def test_a_line_that_a_power_cut_tore_stops_both_memories(tmp_path: Path) -> None:
    path = tmp_path / "o"
    FileOpenings(path).note(opening(0, 1, 1, 1), lambda: None)
    plan = opening(0, 1, 1, 1).plan
    assert FileOpenings(path).last(plan)
    with path.open("a") as file:
        file.write('{"plan":"')
    for _ in range(2):
        with pytest.raises(MachineError, match="cannot be read"):
            FileOpenings(path).last(plan)


def test_a_ledgers_account_is_that_of_its_entries(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "l")
    entries = [entry(n, "a", "b") for n in range(3)] + [
        entry(n, "a", plan="c" * 64) for n in (4, 5)
    ]
    for each in entries:
        ledger.spend(each, lambda account: None)
        account = FileLedger(tmp_path / "l").account()
    for plan in ("a" * 64, "c" * 64):
        mine = Tally(each for each in entries if each.plan == plan)
        assert account.plans[plan].spent("a") == mine.spent("a")
        assert account.plans[plan].sums("b") == mine.sums("b")
    assert account.whole == Tally(entries).spent("a")
    both = account.plans["a" * 64].plus(account.plans["c" * 64])
    assert (both.count, both.sums("a"), both.sums("b")) == (5, 5, 3)
    (tmp_path / "l").write_text(entries[0].model_dump_json() + "\n")
    assert FileLedger(tmp_path / "l").account().whole == entries[0].spent


def test_a_ledger_that_was_put_back_and_has_grown_again_counts_anew(tmp_path: Path) -> None:
    """Its lines end alike, whatever sum they are of: in place, as long as before, and then longer."""
    path, other = tmp_path / "l", "c" * 64
    before = [entry(n, "a") for n in (1, 2)]
    back = [entry(n, "a", plan=other) for n in (1, 2, 3)]
    path.write_text("".join(f"{each.model_dump_json()}\n" for each in before))
    assert FileLedger(path).account().plans.keys() == {before[0].plan}
    path.write_text("".join(f"{each.model_dump_json()}\n" for each in back))
    account = FileLedger(path).account()
    assert account.plans[other].sums("a") == 3, "what was spent under the plan is known"
    assert account.plans.keys() == {other}
