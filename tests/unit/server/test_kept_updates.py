"""A coordinator that was killed behind `unmask` asks for the same sum again, and gets the same sum. (P-6.10)"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.encoding import vector_digest
from protocol.errors import DataError
from protocol.exchange import Contribution
from server.secret_attempt import SecretAttempt
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.server.test_late_updates import records

FAILING = 2  # a site


class Killed(Exception):
    pass


class Changing(Sites):
    """Sites whose trainings are never alike; the first one of round 2 fails at one of them."""

    def _contribution(self, site: int, number: int) -> Contribution:
        given = super()._contribution(site, number)
        times = Counter(self.trained)[site, number]
        if (site, number, times) == (FAILING, 2, 1):
            raise DataError("rows.jsonl: is not there", "put it back")
        given.update[:] *= 1 + times / 8
        return given


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="parts in turn"),
        pytest.param({"rule": {"name": "mean"}}, id="the same parts"),
        pytest.param({"secrecy": {"groups": 3}, "cohort": {"size": 12, "quorum": 9}}, id="groups"),
    ],
)
def test_the_sum_is_the_same_to_the_bit_and_nobody_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    sections = {"rounds": 3} | sections
    count = sections.get("cohort", {}).get("size", 6)
    plan, manifest = small_plan(**sections)
    sites = Changing(plan, manifest, tmp_path / "sites", count)
    opened: list[tuple[int, int, str, dict[str, float]]] = []
    aggregate = SecretAttempt.aggregate

    def kept_and_killed(self: SecretAttempt, closed: Any) -> Any:
        after, given, norm = aggregate(self, closed)
        digest = vector_digest(given.mean)
        opened.append((self._number, self._seq, digest, dict(given.metrics)))
        if len([each for each in opened if each[0] == 2]) == 1 and self._number == 2:
            raise Killed
        return after, given, norm

    monkeypatch.setattr(SecretAttempt, "aggregate", kept_and_killed)
    with pytest.raises(Killed):
        make_run(tmp_path / "run", count=count, sites=sites, **sections)
    run = make_run(tmp_path / "run", count=count, sites=sites, **sections)
    first, again = (each for each in opened if each[0] == 2)
    assert first[1] < again[1]  # another number
    assert first[2:] == again[2:]
    assert again[3]["failures"] == 1.0
    assert max(Counter(sites.trained).values()) == 1
    assert [record["attempt"] for record in records(run)] == [1, 1, 1]
    assert audit(Folder(run), Trust()).faults == ()
