"""`device.toml` and `probe.json`: what the guide shows is read, what is odd is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_runtime.probe import read_probe
from edge_runtime.settings import read_device
from protocol.errors import ArtefactError

GUIDE = (Path(__file__).resolve().parents[3] / "docs/guide.md").read_text()


def block(kind: str, word: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.S | re.M)
    (chosen,) = [text for text in found if word in text]
    return str(chosen)


def test_the_guides_device_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text(block("toml", "repository ="))
    device = read_device(tmp_path / "device.toml")
    assert device.store == tmp_path / "store"
    assert device.repository == "https://updates.example.org/home"
    (tmp_path / "probe.json").write_text(block("json", "lamp_on"))
    assert read_probe(tmp_path / "probe.json").rows[0].label == "lamp_on"
    (tmp_path / "probe.json").write_text(block("json", "max_tokens"))
    assert read_probe(tmp_path / "probe.json").rows[1].contains == "Paris"


def test_a_folder_of_a_repository_starts_at_the_settings(tmp_path: Path) -> None:
    text = block("toml", "repository =").replace("https://updates.example.org/home", "../usb/repo")
    (tmp_path / "device.toml").write_text(text)
    assert Path(read_device(tmp_path / "device.toml").repository).resolve() == (
        tmp_path.parent / "usb/repo"
    )


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('id = "kiosk-17"', 'id = "../x"', "id"),
        ('channel = "stable"', 'channel = "beta"', "channel"),
        ('store = "store"', "", "store"),
        ('store = "store"', 'store = "store"\nsurprise = 1', "surprise"),
        ('store = "store"', 'store = "store"\ndeadline_s = 0', "deadline_s"),
        ('store = "store"', 'store = "store"\nwindow_s = "60"', "window_s"),
        ('store = "store"', 'store = "store"\ndeadline_s = true', "deadline_s"),
        ('store = "store"', "store = ", "not valid TOML"),
    ],
)
def test_odd_settings_are_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "device.toml"
    path.write_text(block("toml", "repository =").replace(old, new))
    with pytest.raises(ArtefactError, match=named):
        read_device(path)


def test_a_probe_that_nothing_can_pass_is_refused(tmp_path: Path) -> None:
    """Every release would be named as failed, and not promoted for anybody."""
    text = block("json", "lamp_on").replace('"least_correct": 1', '"least_correct": 2')
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(ArtefactError, match="least_correct"):
        read_probe(tmp_path / "probe.json")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "rows": []}', "[]"])
def test_odd_probes_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"probe\.json"):
        read_probe(tmp_path / "probe.json")
    with pytest.raises(ArtefactError):
        read_probe(tmp_path / "none.json")
