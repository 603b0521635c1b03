"""docs/families.md says what the registries and their contract tests say."""

from __future__ import annotations

import re
from pathlib import Path

from base_model import families as encoders
from base_model.decoder.families import FAMILIES, REFUSED
from base_model.denoisers import families as denoisers
from base_model.gguf.architecture import ARCHITECTURES
from base_model.images import families as images
from base_model.seq2seq import families as seq2seq
from base_model.sounds import families as sounds
from tests.unit.base_model.decoder.test_programs import UNTRAINED

DOCUMENT = (Path(__file__).resolve().parents[4] / "docs" / "families.md").read_text()
WRITING, SORTING = DOCUMENT.split("## Models that sort texts")
WRITING, DRAWING = WRITING.split("## Models that draw images")
WRITING, PLACING = WRITING.split("## Models that sort documents")
WRITING, HEARING = WRITING.split("## Models that sort sounds")
WRITING, SEEING = WRITING.split("## Models that sort images")
WRITING, TURNING = WRITING.split("## Models that turn a text into another")


def test_every_decoder_has_a_row_that_says_whether_it_is_trained() -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \| yes \| (yes|no) \|", WRITING, re.M))
    assert rows == {name: "no" if name in UNTRAINED else "yes" for name in FAMILIES}


def test_refused_decoders_are_named() -> None:
    refused = WRITING.split("Refused by name:")[1]
    assert [name for name in REFUSED if f"`{name}`" not in refused] == []


def test_models_that_turn_a_text_into_another_are_named() -> None:
    listed, refused = TURNING.split("Refused by name:")
    rows = dict(re.findall(r"^\| `(\S+)` \| yes \| (yes) \|", listed, re.M))
    assert list(rows) == list(seq2seq.FAMILIES)
    assert set(re.findall(r"`(\w+)`", refused.partition("every other")[0])) == set(seq2seq.REFUSED)


def test_models_that_sort_images_are_named() -> None:
    listed, refused = SEEING.split("Refused by name:")
    rows = dict(re.findall(r"^\| `(\S+)` \| yes \| (yes) \|", listed, re.M))
    assert list(rows) == list(images.FAMILIES)
    assert set(re.findall(r"`(\w+)`", refused.partition("and every")[0])) == set(images.REFUSED)


def test_models_that_sort_sounds_are_named() -> None:
    listed, refused = HEARING.split("Refused by name:")
    rows = dict(re.findall(r"^\| `(\S+)` \| yes \| (yes) \|", listed, re.M))
    assert list(rows) == list(sounds.FAMILIES)
    assert set(re.findall(r"`([\w-]+)`", refused.partition("and every")[0])) == set(sounds.REFUSED)


def test_encoders_are_named() -> None:
    listed, refused = SORTING.split("Refused with the")
    of_texts = {name for name, family in encoders.FAMILIES.items() if not family.boxed}
    assert set(re.findall(r"`([\w-]+)`", listed)) == of_texts
    assert set(re.findall(r"`([\w-]+)`", refused)) == set(encoders.REFUSED)


def test_models_that_sort_documents_are_named() -> None:
    listed, refused = PLACING.split("Refused by name:")
    rows = dict(re.findall(r"^\| `(\S+)` \| yes \| (yes) \|", listed, re.M))
    assert list(rows) == [name for name, family in encoders.FAMILIES.items() if family.boxed]
    named = set(re.findall(r"`([\w-]+)`", refused.partition("and every")[0]))
    assert named == set(encoders.REFUSED_OF_DOCUMENTS)


def test_models_that_draw_are_named() -> None:
    listed, refused = DRAWING.split("Refused by name:")
    assert re.findall(r"^\| `(\S+)` \| yes \| yes \|", listed, re.M) == [denoisers.FAMILY]
    named = set(re.findall(r"`(\w+)`", refused.partition("and every")[0])) - {"vae"}
    assert named == set(denoisers.REFUSED)


def test_architectures_of_gguf_files_are_named() -> None:
    named = WRITING.split("architectures ")[1].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(ARCHITECTURES)
