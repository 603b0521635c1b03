"""What a source lacks, or has broken, is named and refused before anything is written; nothing is made up."""

from __future__ import annotations

import json
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from base_model.build import build_base, model_of
from base_model.checkpoint import read_checkpoint
from base_model.families import REFUSED
from base_model.source import load_source
from base_model.store import open_base
from protocol.errors import ArtefactError, FedgeError, MachineError
from tests.tiers import one_by_default
from tests.unit.base_model.source_faults import (
    FAULTS,
    Spoil,
    edit,
    remove,
    tensors,
    write,
)
from tests.unit.base_model.sources import (
    CONTAINERS,
    FAMILIES,
    WORDS_64,
    write_source,
)

TASK = "sequence-classification"


def refusal(source: Path | str, out: Path, **arguments: Any) -> FedgeError:
    """How the build refuses ``source``; nothing may be left behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(FedgeError) as refused:
        build_base(str(source), task=TASK, bits=4, out=out, **arguments)
    assert sorted(out.parent.iterdir()) == before
    assert refused.value.exit_code in (5, 8)
    assert refused.value.remedy
    return refused.value


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_with_a_fault_is_refused_by_its_name(tmp_path: Path, fault: str) -> None:
    spoil, cause = FAULTS[fault]
    source = write_source(tmp_path / "source", pooling="mean")
    load_source(str(source), pooling="auto")
    spoil(source)
    (tmp_path / "out").mkdir()
    assert re.search(cause, refusal(source, tmp_path / "out" / "base").cause)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_that_would_be_drawn_anew_is_named(tmp_path: Path, family: str) -> None:
    source = write_source(tmp_path / "source", family=family, classifier=True)
    loaded = load_file(source / "model.safetensors")
    for name in loaded:
        rest = {key: value for key, value in loaded.items() if key != name}
        save_file(rest, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(ArtefactError, match="lacks") as refused:
            load_source(str(source), pooling="auto")
        assert name in refused.value.cause


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_that_nothing_brings_ends_the_conversion(tmp_path: Path, family: str) -> None:
    loaded = load_source(str(write_source(tmp_path / "source", family=family)), pooling="mean")
    model_of(loaded)
    for name in loaded.tensors:
        rest = {key: value for key, value in loaded.tensors.items() if key != name}
        with pytest.raises(ArtefactError, match="no adapter would bring it") as refused:
            model_of(replace(loaded, tensors=rest))
        assert name in refused.value.cause


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_does_not_work_is_refused_with_the_reason(
    tmp_path: Path, family: str
) -> None:
    source = write_source(tmp_path / "source", pooling="mean")
    edit("config.json", model_type=family)(source)
    (tmp_path / "out").mkdir()
    fault = refusal(source, tmp_path / "out" / "base")
    assert f"`{family}` cannot be a base" in fault.cause
    assert REFUSED[family] in fault.cause
    assert "albert" in fault.remedy


def test_a_padding_id_that_the_model_does_not_count_from_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", family="mpnet", pad=2, pooling="mean")
    (tmp_path / "out").mkdir()
    fault = refusal(source, tmp_path / "out" / "base")
    assert "`pad_token_id` is 2, and mpnet counts positions from 1" in fault.cause


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_pooling_whose_layer_is_absent_is_refused_with_the_others_named(
    tmp_path: Path, family: str
) -> None:
    source = write_source(tmp_path / "source", family=family)
    tensors(lambda loaded: [loaded.pop(k) for k in list(loaded) if k.startswith("pooler.")])(source)
    with pytest.raises(ArtefactError, match=r"lacks .*pool|lacks .*pre_classifier") as refused:
        load_source(str(source), pooling="pooler")
    assert refused.value.remedy == "pass --pooling mean or cls"
    assert load_source(str(source), pooling="mean").pooling == "mean"


@pytest.mark.parametrize("pad", [None, -1, 69])
def test_positions_are_not_counted_from_an_odd_padding_id(tmp_path: Path, pad: int | None) -> None:
    source = write_source(tmp_path / "source", family="roberta")
    document = json.loads((source / "config.json").read_text()) | {"pad_token_id": pad}
    (source / "config.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match=r"`pad_token_id` is"):
        load_source(str(source), pooling="auto")


def test_a_vocabulary_file_that_says_its_case_is_a_tokenizer(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    remove("tokenizer.json")(source)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS_64]
    (source / "vocab.txt").write_text("\n".join(tokens) + "\n")
    for lowered in (True, False):
        settings = {"do_lower_case": lowered, "tokenizer_class": "BertTokenizer"}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(load_source(str(source), pooling="auto").tokenizer)
        expected = BertTokenizer.from_pretrained(source)("Turn the lights on").input_ids
        assert made.encode("Turn the lights on").ids == expected


def test_a_package_that_the_tokenizer_needs_is_named(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    spoil = FAULTS["sentencepiece alone"][0]
    spoil(source)
    (tmp_path / "out").mkdir()
    assert refusal(source, tmp_path / "out" / "base").remedy


@pytest.mark.parametrize("container", ["single", "bin", "shards", "bin shards"])
def test_the_types_that_a_checkpoint_may_have_are_read_as_float32(
    tmp_path: Path, container: str
) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        source = write_source(tmp_path / f"{container}{dtype}")
        tensors(lambda loaded, to=dtype: loaded.update({k: v.to(to) for k, v in loaded.items()}))(
            source
        )
        place = Path(CONTAINERS[container](source))
        assert {value.dtype for value in read_checkpoint(place).values()} == {dtype}
        loaded = load_source(str(place), pooling="auto")
        assert {value.dtype for value in loaded.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("limit", one_by_default(2_000, [2_000, 40_000]))
def test_a_disk_that_takes_no_more_is_the_machines_fault(tmp_path: Path, limit: int) -> None:
    """Of the weights, or of the graph alone: a bound on files stands for the full disk."""
    source = write_source(tmp_path / "source", pooling="mean")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "out").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        refused = refusal(source, tmp_path / "out" / "base")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(refused, MachineError)
    assert "cannot be written: File too large" in refused.cause


def test_a_place_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", pooling="mean")
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"cannot be written: (Not a directory|File exists)"):
        build_base(str(source), task=TASK, bits=4, out=tmp_path / "file" / "base")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (write("tokenizer.json", "{}"), r"tokenizer\.json: "),
        (write("config.json", "{}"), "model_type"),
        (write("config.json", "not JSON"), "JSONDecodeError|not JSON"),
        (edit("config.json", num_hidden_layers=1), "ModuleList|num_hidden_layers"),
        (edit("config.json", num_attention_heads=5), "heads|multiple"),
    ],
)
def test_a_base_that_does_not_open_says_why(
    tiny_base: Path, tmp_path: Path, spoil: Spoil, cause: str
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "base")
    spoil(copy)
    with pytest.raises(ArtefactError, match=cause):
        open_base(copy, verify=False)
