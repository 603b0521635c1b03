from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ArtefactError
from simulations.plots import Line, line_chart
from simulations.report import write_report
from simulations.report_quality import wilson
from tests.report_files import EVIL

VOID = {"meta", "line", "rect", "polyline", "circle"}


def test_yardsticks_are_drawn_on_the_scale_of_the_rounds(run: Path) -> None:
    """All in one place is above the rounds, alone below them: smaller y is higher."""
    page = write_report(run).read_text()
    chart = page[page.index("Quality per round") :]
    heights = {}
    for css in ("c1", "c2", "c3"):
        points = re.search(rf'<polyline[^>]*class="[^"]*{css}[^>]*points="([^"]+)"', chart) or (
            re.search(rf'<polyline[^>]*points="([^"]+)"[^>]*class="[^"]*{css}', chart)
        )
        assert points, css
        heights[css] = float(points[1].split()[-1].split(",")[1])
    assert heights["c2"] < heights["c1"] < heights["c3"]


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_safe_and_says_what_the_files_say(run: Path) -> None:
    text = write_report(run).read_text()
    page = Balance()
    page.feed(text)
    assert page.open == []
    assert "svg" in page.seen
    assert "script" not in page.seen
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    for figure in (
        "43.21%",
        "54.32%",
        "65.43%",
        "12.34%",
        "10.00% to 15.00%",
        "3.25",
        "4.75",
        "line 3",
    ):
        assert figure in text, figure
    assert "coordinator saw every client" in text
    assert "no differential privacy" in text
    assert "http" not in text


def test_devices_are_drawn_before_and_after_their_own_training(run: Path) -> None:
    yardsticks = json.loads((run / "yardsticks.json").read_text())
    devices = {
        "a": {"rows": 9, "test_rows": 40, "federated": 0.5, "personal": 0.75, "alone": 0.25},
        EVIL: {"rows": 8, "test_rows": 20, "federated": 0.625, "personal": 0.5},
    }
    mean = {"federated": 0.5625, "personal": 0.625}
    yardsticks["personal"] = {"by": "labels", "mean": mean, "per_client": devices}
    (run / "yardsticks.json").write_text(json.dumps(yardsticks))
    page = write_report(run).read_text()
    assert EVIL not in page
    section = page[page.index("A part of each device") :]
    assert "1 are served better" in " ".join(section.split())
    assert "1 worse" in section
    assert "each label as often as among the device" in section
    for text in ("56.25%", "62.50%", "75.00%", "25.00%", "mean of 2 devices"):
        assert text in section, text
    assert section.index(">a</text>") < section.index("alert(", section.index("<svg"))
    before, after, before_second, after_second = (
        float(x) for x in re.findall(r'cx="([\d.]+)"', section)[2:6]
    )
    assert after - before == pytest.approx(2 * (before_second - after_second), abs=0.3)
    assert after_second == before


@pytest.mark.parametrize(("kind", "said"), [("classification", "worse"), ("regression", "better")])
def test_what_is_forgotten_is_said_in_the_direction_of_the_quality(
    run: Path, kind: str, said: str
) -> None:
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"task": {"kind": kind}}))
    (run / "evaluations.json").unlink()
    lost = 0.125 if said == "worse" else -0.125
    entries = [
        {"run": EVIL, "why": EVIL},
        {"run": "one", "rows": 60, "then": 0.75, "now": 0.625, "forgotten": lost},
    ]
    (run / "forgetting.json").write_text(json.dumps(entries))
    page = write_report(run).read_text()
    assert EVIL not in page
    for text in ("75.00%", "62.50%", f"12.50 points {said}"):
        assert text in page, text


def summary_of(**changes: Any) -> dict[str, Any]:
    figures = {
        f"{key}_{whose}": 0.5
        for key in ("accuracy", "loss", "macro_f1")
        for whose in ("federated", "pooled", "alone_mean")
    }
    label = {"recall": 0.25, "f1": 0.3, "loss": 1.25, "precision": None}
    return {
        **figures,
        "clients": 3,
        "rows_train": 9003,
        "rows_test": 3080,
        "labels": 77,
        "warnings": [f"warning `local.learning_rate`: {EVIL}"],
        "per_label": {EVIL: {"rows": 7, "federated": label}},
        "per_client": {
            "client-0000": {"value": "Bad", "rows": 5, "labels": 2, "federated": 0.4375}
        },
        "seconds_by_part": {"federated": 8.0, "audit": 1.5, "other": 0.5},
        "seconds_forecast": {"federated": 6.0},
    } | changes


def test_the_page_tells_what_was_run_on_what_and_when(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps(summary_of()))
    times = {"parts": {}, "rounds": {}, "started": 1_790_000_000, "ended": 1_790_003_600}
    (run / "timings.json").write_text(json.dumps(times))
    (run / "clients.json").write_text(json.dumps({"column": "room", "clients": {}}))
    page = write_report(run).read_text()
    head = page[page.index("<header>") : page.index("</header>")]
    for text in ("rule mean", "9,003 rows to train on", "3,080 rows to test on", "77 labels"):
        assert text in head, text
    assert "From 2026-09-21 14:13 to 2026-09-21 15:13 UTC" in head
    assert EVIL not in page
    assert "warning `local.learning_rate`: &lt;script&gt;" in page
    for text in ("<td>Bad</td>", "43.75%", "25.00%", "30.00%", "1.250", "<th>room</th>"):
        assert text in page, text


def test_a_soft_prompt_is_shown_in_words(run: Path) -> None:
    near = [
        {"token": EVIL, "id": 7, "similarity": 0.98765},
        {"token": "lamp", "id": 3, "similarity": -0.125},
    ]
    words = [{"row": 1, "nearest": near}, {"row": 2, "nearest": []}]
    (run / "summary.json").write_text(json.dumps(summary_of(prompt_words=words)))
    page = write_report(run).read_text()
    assert EVIL not in page
    assert "(0.99)</td><td>lamp (-0.12)</td>" in page
    assert "<td>2</td><td>none: a row of zeros</td>" in page
    (run / "summary.json").write_text(json.dumps(summary_of()))
    assert "soft prompt" not in write_report(run).read_text()


def test_the_parts_of_its_time_add_up(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps(summary_of()))
    page = write_report(run).read_text()
    rows = re.findall(r"<td>([a-z ]+)</td><td>([0-9.]+) s</td><td>([0-9.]*)(?: s)?</td>", page)
    spent = {name: float(seconds) for name, seconds, _ in rows}
    assert spent.pop("whole run") == sum(spent.values()) == 10.0
    assert "other" in spent
    assert ("federated", "8.0", "6.0") in rows


def test_plots_come_before_hashes(run: Path) -> None:
    page = write_report(run).read_text()
    assert page.index("<svg") < page.index("f" * 64)
    assert page.rindex("L2 norm of the mean update") < page.index("f" * 64)


def test_close_results_are_told_apart_and_the_cut_axis_says_so(run: Path) -> None:
    """91.5 % and 91.8 % lie on different heights, labelled without rounding two grid lines to one."""
    entries = [
        {"round": n, "accuracy": a, "loss": 1 - a, "macro_f1": a}
        for n, a in enumerate((0.3, 0.7, 0.905, 0.91, 0.915), 1)
    ]
    (run / "evaluations.json").write_text(json.dumps({"test": entries}))
    (run / "yardsticks.json").write_text(json.dumps({"pooled": {"accuracy": 0.918, "loss": 0.08}}))
    page = write_report(run).read_text()
    chart = page[page.index("The end of it, enlarged</figcaption>") :]
    chart = chart[: chart.index("</svg>")]
    heights = [
        float(points.split()[-1].split(",")[1])
        for points in re.findall(r'<polyline[^>]*points="([^"]+)"', chart)
    ]
    assert abs(heights[0] - heights[1]) > 20  # of 212
    labels = re.findall(r'text-anchor="end">([0-9.]+) %<', chart)
    assert len(labels) == len(set(labels))
    steps = {round(float(b) - float(a), 6) for a, b in pairwise(labels)}
    assert len(steps) == 1
    assert f"heights begin at {labels[0]} %, not at 0" in chart
    whole = page[page.index("Test accuracy per round") : page.index("The end of it, enlarged")]
    assert "not at 0" not in whole
    assert "Test loss per round" in page


@pytest.mark.parametrize("step", [0.001, 0.0025, 0.01, 0.02, 0.25, 0.5, 1.0, 2.5, 10.0, 2500.0])
def test_no_two_heights_have_one_label(step: float) -> None:
    lines = [Line(name="a", points=((1, 91 * step), (2, 95 * step)), css="c1")]
    labels = re.findall(r'text-anchor="end">([0-9.,]+)<', line_chart("t", lines, enlarged=True))
    values = [float(label.replace(",", "")) for label in labels]
    assert values == pytest.approx([step * round(value / step) for value in values])
    assert len(set(labels)) == len(labels) > 3


def test_the_page_fits_a_phone_and_paper(run: Path) -> None:
    page = write_report(run).read_text()
    assert "width=device-width" in page
    assert "max-width:40rem" in page
    printed = page[page.index("@media print") :]
    assert "details-content" in printed  # what is folded is printed
    assert "--bg:#fff" in printed  # on paper it is light
    tables = re.findall(r"(<[^<>]*>)<table>", page)
    assert set(tables) == {'<div class="wide">'}  # wide ones scroll by themselves
    charts = re.findall(r"(<[^<>]*>)<svg", page)
    assert set(charts) == {'<div class="wide">'}


@pytest.mark.parametrize("name", ["evaluations.json", "yardsticks.json", "timings.json"])
def test_missing_files_are_said_and_damaged_ones_named(run: Path, name: str) -> None:
    (run / name).write_text("{")
    with pytest.raises(ArtefactError, match=name):
        write_report(run)
    (run / name).unlink()
    write_report(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("share", "rows", "low", "high"),
    [(1.0, 15, 0.7961, 1.0), (0.0, 15, 0.0, 0.2039), (0.5, 100, 0.4038, 0.5962)],
)
def test_the_range_of_a_share_is_wilsons(share: float, rows: int, low: float, high: float) -> None:
    assert wilson(share, rows) == pytest.approx((low, high), abs=5e-4)
