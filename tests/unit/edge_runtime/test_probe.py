"""What a release must show on a device before it may answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.backends.encoder import EncoderBackend
from edge_runtime.base import EdgeBase
from edge_runtime.probe import TRIES, Probe, check_health, read_probe
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, DeliveryError

TEXTS = ["turn on the kitchen light", "play some music", "the"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> EdgeBase:
    return EdgeBase.open(tiny_base, threads=1)


@pytest.fixture(scope="module")
def rows(base: EdgeBase, released: dict[str, Path]) -> list[dict[str, str]]:
    """Texts with what the release answers."""
    runtime = EdgeRuntime(base)
    runtime.activate(released["a"])
    found = runtime.infer(TEXTS)
    return [{"text": text, "label": one.label} for text, one in zip(TEXTS, found, strict=True)]


def made(rows: list[dict[str, str]], **limits: Any) -> Probe:
    fields = {"least_correct": len(rows), "most_latency_ms": 5000, "most_memory_mb": 500}
    return Probe.model_validate({"rows": rows, **fields, **limits})


def ticking(seconds: list[float]) -> Callable[[], float]:
    """A clock by which the n-th measured answer takes ``seconds[n]``, the last one from then on."""
    state = {"asked": 0, "now": 0.0}

    def clock() -> float:
        if state["asked"] % 2:
            state["now"] += seconds[min(int(state["asked"]) // 2, len(seconds) - 1)]
        state["asked"] += 1
        return state["now"]

    return clock


def test_a_good_release_passes(
    base: EdgeBase, released: dict[str, Path], rows: list[dict[str, str]]
) -> None:
    health = check_health(released["a"], EncoderBackend(EdgeRuntime(base)), made(rows))
    assert (health.correct, health.rows) == (3, 3)
    assert health.latency_ms > 0


def test_wrong_labels_are_counted(
    base: EdgeBase, released: dict[str, Path], rows: list[dict[str, str]]
) -> None:
    wrong = [{**rows[0], "label": "nothing of the kind"}, *rows[1:]]
    with pytest.raises(DeliveryError, match=r"probe\.labels: 2 of 3 labels are right, 3 must be"):
        check_health(released["a"], EncoderBackend(EdgeRuntime(base)), made(wrong))
    assert (
        check_health(
            released["a"], EncoderBackend(EdgeRuntime(base)), made(wrong, least_correct=2)
        ).correct
        == 2
    )


def test_a_busy_moment_fails_no_release(
    base: EdgeBase, released: dict[str, Path], rows: list[dict[str, str]]
) -> None:
    probe = made(rows, most_latency_ms=50)
    busy = [0.2] * len(rows)
    health = check_health(
        released["a"], EncoderBackend(EdgeRuntime(base)), probe, ticking([*busy, 0.02])
    )
    assert health.latency_ms == pytest.approx(20)
    with pytest.raises(DeliveryError, match=r"probe\.latency: 200 ms a text, 50 ms are allowed"):
        check_health(
            released["a"], EncoderBackend(EdgeRuntime(base)), probe, ticking([*busy * TRIES, 0.02])
        )


def test_memory_has_a_bound(
    base: EdgeBase,
    released: dict[str, Path],
    rows: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = iter([100_000_000, 160_000_000])
    monkeypatch.setattr("edge_runtime.probe.own_bytes", lambda: next(sizes))
    with pytest.raises(DeliveryError, match=r"probe\.memory: 60 MB more, 50 MB are allowed"):
        check_health(
            released["a"], EncoderBackend(EdgeRuntime(base)), made(rows, most_memory_mb=50)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"least_correct": 2},
        {"most_latency_ms": 0},
        {"most_latency_ms": True},
        {"most_memory_mb": "10"},
        {"format": 2},
        {"more": 1},
    ],
)
def test_what_is_no_probe(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"format": 1, "rows": [{"text": "a", "label": "b"}], "least_correct": 1}
    good |= {"most_latency_ms": 10, "most_memory_mb": 10}
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(good))
    assert read_probe(path).least_correct == 1
    path.write_text(json.dumps(good | change))
    with pytest.raises(ArtefactError, match="not a probe"):
        read_probe(path)


CHAT = {"messages": [{"role": "user", "content": "hi"}], "contains": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"text": "a", "label": "b", "contains": "b"},
        {"contains": "b"},
        {"text": "a", **CHAT},
        {"messages": CHAT["messages"], "label": "b"},
        {"text": "a", "text_pair": "c", "contains": "b"},
        {"text": "a", "contains": ""},
        {"messages": [], "contains": "b"},
        {"messages": [{"role": "robot", "content": "hi"}], "contains": "b"},
        {"messages": [{"role": "user", "content": "hi", "name": "x"}], "contains": "b"},
    ],
)
def test_what_is_no_row(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "probe.json"
    limits = {"least_correct": 1, "most_latency_ms": 10, "most_memory_mb": 10}
    path.write_text(json.dumps({"rows": [{"text": "a", "contains": "b"}, CHAT], **limits}))
    assert read_probe(path).kind == "texts"
    path.write_text(json.dumps({"rows": [row], **limits}))
    with pytest.raises(ArtefactError, match="not a probe"):
        read_probe(path)


def test_max_tokens_are_of_texts_and_kinds_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    limits = {"least_correct": 1, "most_latency_ms": 10, "most_memory_mb": 10}
    path.write_text(json.dumps({"rows": [CHAT], "max_tokens": 9, **limits}))
    assert read_probe(path).max_tokens == 9
    label = {"text": "a", "label": "b"}
    path.write_text(json.dumps({"rows": [label], "max_tokens": 9, **limits}))
    with pytest.raises(ArtefactError, match="max_tokens"):
        read_probe(path)
    path.write_text(json.dumps({"rows": [label, CHAT], **limits}))
    with pytest.raises(ArtefactError, match="some rows have labels and some have texts"):
        read_probe(path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"image": "", "label": "b"}], "names no file"),
        ([{"image": " ", "label": "b"}], "names no file"),
        ([{"image": "a\0.png", "label": "b"}], "names no file"),
        ([{"image": "a.png", "label": "b"}, {"text": "a", "label": "b"}], "some have texts"),
        (
            {"file": "rows.jsonl", "image": "photo", "text_pair": "second"},
            "of images, of sounds, of words or of texts",
        ),
        (
            {"file": "rows.jsonl", "image": "photo", "text": "text"},
            "of images, of sounds, of words or of texts",
        ),
        ({"file": "rows.jsonl", "image": "photo", "contains": "label"}, "has a label"),
        ({"file": "rows.jsonl", "image": "photo", "audio": "photo"}, "of images, of sounds"),
        ([{"image": "a.png", "audio": "a.wav", "label": "b"}], "or an image, or audio"),
        ([{"image": "a", "label": "b"}, {"audio": "a", "label": "b"}], "files of another medium"),
        ([{"audio": "a.wav", "text_pair": "b", "label": "b"}], "no second text"),
        ([{"audio": "a.wav", "contains": "b"}], "has a label"),
        ([{"audio": "a\0", "label": "b"}], "names no file"),
    ],
)
def test_what_is_no_probe_of_files(tmp_path: Path, rows: Any, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"photo": "a.png", "label": "b", "second": "c"}\n')
    path = tmp_path / "probe.json"
    limits = {"least_correct": 1, "most_latency_ms": 10, "most_memory_mb": 10}
    for key in ("image", "audio"):
        for good in ([{key: "a.png", "label": "b"}], {"file": "rows.jsonl", key: "photo"}):
            path.write_text(json.dumps({"rows": good, **limits}))
            assert read_probe(path).rows[0].question == tmp_path / "a.png"
    path.write_text(json.dumps({"rows": rows, **limits}))
    with pytest.raises(ArtefactError, match=reason):
        read_probe(path)


def test_rows_of_texts_may_lie_in_a_file(tmp_path: Path) -> None:
    lines = [{"prompt": "one", "answer": " 1"}, {"prompt": "two", "answer": " 2"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    limits = {"least_correct": 1, "most_latency_ms": 10, "most_memory_mb": 10}
    columns = {"file": "rows.jsonl", "text": "prompt", "contains": "answer"}
    (tmp_path / "probe.json").write_text(json.dumps({"rows": columns, **limits}))
    rows = read_probe(tmp_path / "probe.json").rows
    assert [(row.text, row.contains) for row in rows] == [("one", " 1"), ("two", " 2")]
    odd = {"rows": columns | {"value": "answer"}, **limits}
    (tmp_path / "probe.json").write_text(json.dumps(odd))
    with pytest.raises(ArtefactError, match="not a probe"):
        read_probe(tmp_path / "probe.json")
