"""Bases of images against transformers' own models, and sources that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor
from typer.testing import CliRunner

from base_model.commands import app
from base_model.images.build import build_images
from base_model.images.preprocessing import read_preprocessing
from base_model.images.source import load_images
from base_model.media_store import open_media
from base_model.programs.checks import OPERATORS
from base_model.slot_check import verify_slots
from base_model.verify import read_manifest, verify_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, PlanError
from protocol.image_manifest import ImageManifest, parse_image_manifest
from protocol.media_manifest import media_fingerprint_of
from protocol.rows.images import ImageCodec
from protocol.rows.media import read_inputs
from tests.image_models import (
    FAMILIES,
    HEADED,
    LABELS,
    SIDE,
    preprocessing,
    write_images,
    write_images_source,
)
from tests.tiers import one_by_default

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """(source, base) of a family at a width, built once."""
    folder, there = tmp_path_factory.mktemp("built"), dict[tuple[str, int], Path]()

    def build(family: str, bits: int) -> Path:
        if (family, bits) not in there:
            source = folder / family
            if not source.exists():
                write_images_source(source, family=family, head="own")
            there[family, bits] = folder / f"{family}-{bits}"
            build_images(str(source), bits=bits, out=there[family, bits], scales=True)
        return there[family, bits]

    return build


@pytest.mark.parametrize("family", one_by_default("vit", FAMILIES))
@pytest.mark.parametrize("bits", one_by_default(4, (4, 8, 16, 32)))
def test_a_base_answers_as_transformers_own_class(
    built: Build, tmp_path: Path, family: str, bits: int
) -> None:
    """With the source's head and its labels' names, on the values that the codes stand for."""
    base = built(family, bits)
    manifest = verify_base(base)
    assert isinstance(manifest, ImageManifest)
    verify_slots(base, manifest)
    images = write_images(tmp_path, 5)
    own = HEADED[family].from_pretrained(base.parent / family).eval()
    opened = open_media(base)
    for linear in manifest.linears:
        weight = opened.model.get_submodule(linear.path).weight
        own.get_submodule(linear.path).weight.data = torch.as_tensor(weight).detach().clone()
    pixels = torch.from_numpy(read_inputs(images, ImageCodec(manifest.pixels))["pixel_values"])
    with torch.no_grad():
        expected = own(pixel_values=pixels).logits.numpy()
        torch.testing.assert_close(
            opened.model(pixel_values=pixels).logits.numpy(), expected, rtol=1e-5, atol=1e-5
        )
    runtime = EdgeRuntime(EdgeBase.open(base, threads=1))
    answers = runtime.logits(images)
    assert np.abs(answers - expected).max() <= 1e-4 * np.abs(expected).max()
    said = [answer.answer for answer in runtime.infer(images)]
    assert said == [LABELS[index] for index in expected.argmax(-1)]
    assert len(set(said)) > 1


def test_the_graph_has_operators_of_programs_alone(built: Build) -> None:
    graph = onnx.load(str(built("vit", 4) / "graph.onnx")).graph
    assert {(node.domain, node.op_type) for node in graph.node} <= OPERATORS
    assert [v.name for v in graph.input if v.name not in {i.name for i in graph.initializer}] == [
        "pixel_values"
    ]


def test_names_of_old_and_new_checkpoints_are_one_base(tmp_path: Path) -> None:
    source = write_images_source(tmp_path / "old", head="own")
    model = HEADED["vit"].from_pretrained(source)
    new = tmp_path / "new"
    new.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (new / name).write_bytes((source / name).read_bytes())
    save_file(model.state_dict(), new / "model.safetensors")
    assert (
        load_file(new / "model.safetensors").keys()
        != load_file(source / "model.safetensors").keys()
    )
    old, modern = (load_images(str(folder), 0).tensors for folder in (source, new))
    assert old.keys() == modern.keys()
    assert all(torch.equal(old[name], modern[name]) for name in old)


@pytest.mark.parametrize("family", one_by_default("vit", FAMILIES))
def test_a_head_of_another_class_is_left_out(tmp_path: Path, family: str) -> None:
    source = write_images_source(tmp_path / "source", family=family, head="other")
    loaded = load_images(str(source), 0)
    assert loaded.labels is None
    assert not [name for name in loaded.tensors if "classifier" in name]
    assert "left out" in loaded.reasons[0]
    encoder = write_images_source(tmp_path / "encoder", family=family)
    assert "no head" in load_images(str(encoder), 0).reasons[0]


DEIT = {"image_processor_type": "DeiTImageProcessor"}


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"size": SIDE, "resample": 3, "image_mean": 0.5, "image_std": 0.25},
        {"size": SIDE, "default_to_square": True, "do_center_crop": None, "crop_size": 8},
        {"default_to_square": False, "do_center_crop": False, "do_convert_rgb": True},
        DEIT | {"size": 17, "do_center_crop": True, "crop_size": SIDE},
        DEIT | {"do_center_crop": False, "crop_size": 8},
        {"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"},
        {"image_processor_type": "ViTImageProcessorFast", "rescale_factor": 0.5},
    ],
    ids=str,
)
def test_what_is_taken_is_what_transformers_does(tmp_path: Path, others: dict[str, Any]) -> None:
    """Of images of many shapes, to float32's rounding."""
    said = {key: value for key, value in preprocessing(**others).items() if value is not None}
    nulls = {key: None for key in others if key == "do_center_crop" and others[key] is None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | nulls))
    pixels = read_preprocessing(tmp_path, family="vit", channels=3, size=(SIDE, SIDE))
    rng, images = np.random.default_rng(0), list[Path]()
    for height, width in ((SIDE, SIDE), (9, 31), (40, 7)):
        images.append(tmp_path / f"{height}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(images[-1])
    own = AutoImageProcessor.from_pretrained(tmp_path)
    expected = own([Image.open(image) for image in images], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(
        read_inputs(images, ImageCodec(pixels))["pixel_values"], expected, rtol=1e-5, atol=1e-5
    )


def test_steps_that_are_unsaid_are_done(tmp_path: Path) -> None:
    """As files of old have them: both classes did them always."""
    full, read = preprocessing(), []
    unsaid = ("do_resize", "do_rescale", "do_normalize", "rescale_factor")
    for document in (full, {key: full[key] for key in full if key not in unsaid}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
        read.append(read_preprocessing(tmp_path, family="vit", channels=3, size=(SIDE, SIDE)))
    assert read[0] == read[1]


def test_what_becomes_of_an_image_is_part_of_a_fingerprint(
    tmp_path: Path, tiny_images: Path
) -> None:
    manifest, prints = read_manifest(tiny_images), set()
    assert isinstance(manifest, ImageManifest)
    cut = DEIT | {"size": 16, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}}
    for others in ({}, {"resample": 3}, {"image_mean": [0.25, 0.4, 0.3]}, cut):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing(3, **others)))
        pixels = read_preprocessing(tmp_path, family="vit", channels=3, size=(12, 12))
        prints.add(media_fingerprint_of(manifest.model_copy(update={"pixels": pixels})))
    assert len(prints) == 4
    assert manifest.fingerprint in prints
    assert (pixels.resized, pixels.shape) == ((16, 16), (3, 12, 12))


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(name)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (without("resample"), "it does not say `resample`"),
        (without("size"), "it does not say `size`"),
        (without("image_mean"), "it does not say `image_mean`"),
        (lambda d: d.update(do_flip=True), "`do_flip` is not known here"),
        (lambda d: d.update(do_rescale=False), "`do_rescale` is false"),
        (lambda d: d.update(do_pad=True), "`do_pad` is not done here"),
        (lambda d: d.update(size={"shortest_edge": 12}), "hangs on each image: shortest_edge"),
        (lambda d: d.update(size=16), "images become 16 by 16, and the model reads 12 by 12"),
        *(
            (lambda d, kind=kind: d.update(image_processor_type=kind), "is not known here")
            for kind in (
                *("CLIPImageProcessor", "ConvNextImageProcessor", "LevitImageProcessor"),
                *("PerceiverImageProcessor", "ViTHybridImageProcessor", "BitImageProcessor", 5, []),
            )
        ),
        (
            lambda d: d.update(feature_extractor_type="CLIPFeatureExtractor"),
            'a processor "CLIPFeatureExtractor" is not known here',
        ),
        (lambda d: d.update(size=12, default_to_square=False), "`default_to_square`"),
        (lambda d: d.update(size=12, default_to_square=None), "`default_to_square`"),
        (lambda d: d.update(size=[12, 12]), "`size` is no size in pixels"),
        (lambda d: d.update(size=None), "`size` is no size in pixels"),
        (lambda d: d.update(size=True), "`size` is no size in pixels"),
        (lambda d: d.update(size={"height": 12, "width": "12"}), "`size` is no size in pixels"),
        (lambda d: d.update(do_center_crop=True, crop_size=12), "some versions"),
        (lambda d: d.update(DEIT), "it does not say `do_center_crop`"),
        (lambda d: d.update(DEIT, do_center_crop=None), "`do_center_crop` is null"),
        (lambda d: d.update(DEIT, do_center_crop=True), "it does not say `crop_size`"),
        (lambda d: d.update(DEIT, size=8, do_center_crop=True, crop_size=12), "padded"),
        (lambda d: d.update(do_resize=None), "`do_resize` is null"),
        (lambda d: d.update(rescale_factor="0.1"), '`rescale_factor` is "0.1", no number'),
        (lambda d: d.update(rescale_factor=True), "`rescale_factor` is true, no number"),
        (lambda d: d.update(rescale_factor=None), "`rescale_factor` is null, no number"),
        (lambda d: d.update(rescale_factor=10**400), "`rescale_factor` is beyond all numbers"),
        (lambda d: d.update(image_mean=True), "`image_mean` is true, no number"),
        (lambda d: d.update(image_mean=None), "`image_mean` is null, no number"),
        (lambda d: d.update(image_mean=[0.5, True, 0.5]), "`image_mean` is true, no number"),
        (lambda d: d.update(image_std=[0.5, [], 0.5]), "`image_std` is [], no number"),
        (lambda d: d.update(resample=None), "`resample` is null"),
        (lambda d: d.update(resample=[2]), "`resample` is [2]"),
        (lambda d: d.update(size="large"), "`size` is no size in pixels"),
        (lambda d: d.update(resample=7), "`resample` is 7"),
        (lambda d: d.update(resample=True), "`resample` is true"),
        (lambda d: d.update(image_mean=[0.5]), "`image_mean` has 1 numbers"),
        (lambda d: d.update(image_std=[0.5, 0.5, 0]), "std"),
        (lambda d: d.update(rescale_factor=0), "scale"),
    ],
)
def test_preprocessing_that_is_unsaid_or_unknown_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], cause: str
) -> None:
    settings = preprocessing()
    change(settings)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtefactError, match="preprocessor_config") as caught:
        read_preprocessing(tmp_path, family="vit", channels=3, size=(SIDE, SIDE))
    assert cause in caught.value.cause


@pytest.mark.parametrize("kind", [None, "ViTFeatureExtractor"])
def test_a_model_has_its_own_class_where_none_is_named(tmp_path: Path, kind: str | None) -> None:
    settings = preprocessing(image_processor_type=kind)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    read_preprocessing(tmp_path, family="vit", channels=3, size=(SIDE, SIDE))
    with pytest.raises(ArtefactError, match="it does not say `do_center_crop`"):
        read_preprocessing(tmp_path, family="deit", channels=3, size=(SIDE, SIDE))


def test_a_source_of_odd_preprocessing_is_no_base(tmp_path: Path) -> None:
    settings = preprocessing(image_processor_type="CLIPImageProcessor")
    source = write_images_source(tmp_path / "source", settings=settings)
    with pytest.raises(ArtefactError, match="preprocessor_config"):
        build_images(str(source), bits=4, out=tmp_path / "base")
    assert not (tmp_path / "base").exists()


def changed_config(source: Path, **fields: Any) -> None:
    path = source / "config.json"
    document = {k: v for k, v in (json.loads(path.read_text()) | fields).items() if v is not None}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"image_size": None}, "does not say `image_size`"),
        ({"num_channels": None}, "does not say `num_channels`"),
        ({"num_channels": 4}, "4 channels"),
        ({"patch_size": 5}, "not whole patches"),
        ({"patch_size": "x"}, "config.json"),
        ({"model_type": "swin"}, "windows"),
        ({"model_type": "bert"}, "cannot be a base for image classification"),
        ({"auto_map": {"AutoModel": "x"}}, "code of its own"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"architectures": 5}, "`architectures` is no list of names"),
        ({"architectures": "ViTForImageClassification"}, "`architectures` is no list of names"),
        ({"architectures": [5]}, "`architectures` is no list of names"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks vit.layers.2"),
        ({"num_hidden_layers": 1}, "for which its config.json has no place"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is not from 1 to 1024"),
        ({"intermediate_size": 40}, "by config.json"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    tmp_path: Path, fields: dict[str, Any], cause: str
) -> None:
    source = write_images_source(tmp_path / "source")
    changed_config(source, **fields)
    with pytest.raises(ArtefactError) as caught:
        build_images(str(source), bits=4, out=tmp_path / "base")
    assert cause in caught.value.cause


def test_a_manifest_that_is_changed_is_refused(tiny_images: Path) -> None:
    text = (tiny_images / "manifest.json").read_text()
    assert isinstance(read_manifest(tiny_images), ImageManifest)

    def refused(change: Callable[[dict[str, Any]], Any]) -> str:
        document = json.loads(text)
        change(document)
        with pytest.raises(ArtefactError) as caught:
            parse_image_manifest(json.dumps(document), source="m")
        return caught.value.cause

    assert "fingerprint" in refused(lambda d: d["pixels"].update(resampling="lanczos"))
    assert "fingerprint" in refused(lambda d: d["pixels"].update(mean=[0.5, 0.4, 0.25]))
    assert "one number for each channel" in refused(lambda d: d["pixels"].update(channels=1))
    assert "larger than" in refused(lambda d: d["pixels"].update(height=13))
    assert "resampling" in refused(lambda d: d["pixels"].update(resampling="sinc"))
    assert "sharpen" in refused(lambda d: d["pixels"].update(sharpen=True))
    assert "std" in refused(lambda d: d["pixels"].update(std=[0.5, 0.5, 0.0]))
    assert "pixel_values alone" in refused(lambda d: d["graph"].update(inputs=["input_ids"]))
    assert "pooling" in refused(lambda d: d.update(pooling="mean"))


@pytest.mark.parametrize(
    "change",
    [{"height": 8, "width": 8}, {"channels": 1, "mean": (0.5,), "std": (0.5,)}, {"width": 8}],
    ids=str,
)
def test_a_manifest_of_other_pixels_does_not_fit(
    tiny_images: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Also one with a fingerprint of its own: neither model nor graph reads them."""
    folder = shutil.copytree(tiny_images, tmp_path / "base")
    manifest = read_manifest(folder)
    assert isinstance(manifest, ImageManifest)
    pixels = manifest.pixels.model_copy(update=change)
    other = manifest.model_copy(update={"pixels": pixels})
    other = other.model_copy(update={"fingerprint": media_fingerprint_of(other)})
    (folder / "manifest.json").write_text(other.to_json())
    with pytest.raises(ArtefactError, match="the model reads images of 3 x 12 x 12"):
        verify_base(folder)
    with pytest.raises(ArtefactError, match="the graph does not read `pixel_values` of"):
        EdgeBase.open(folder, threads=1)


def test_the_command_sees_what_a_folder_holds(tmp_path: Path) -> None:
    source = write_images_source(tmp_path / "source")
    arguments = ["build", str(source), "--out", str(tmp_path / "base"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["task"] == "image-classification"
    with pytest.raises(PlanError, match="--pooling"):
        CliRunner().invoke(app, [*arguments, "--pooling", "cls"], catch_exceptions=False)
    other = ["--task", "sequence-classification"]
    again = [*arguments, *other, "--out", str(tmp_path / "other")]
    with pytest.raises(ArtefactError, match="reads images, and a base that sorts texts") as caught:
        CliRunner().invoke(app, again, catch_exceptions=False)
    assert "--task image-classification" in caught.value.remedy
