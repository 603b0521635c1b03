"""The file ``open_adapter.py`` of a PEFT folder of a base of images. (P-5.1)"""

from __future__ import annotations

from protocol.media_opener import preface
from protocol.peft_opener import SHARED

IMPORTS = """from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput"""
IMAGE_OPENER = f'''{preface(reader="pixels", example="an image.png", imports=IMPORTS)}

def load(folder, base):
    """The adapter in `folder` on `base`, ready to answer."""
    folder, base = Path(folder), str(base)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    note = json.loads((folder / "release.json").read_text("utf-8"))
    if _is_base(base):
        encoder = _of_codes(base, note["base_fingerprint"])
    else:
        encoder = AutoModel.from_pretrained(base, dtype=torch.float32, add_pooling_layer=False)
    (head,) = config["modules_to_save"]
    return _adapted(Classifier(encoder, head, note["labels"]), folder, config)


def pixels(base):
    """What the model reads of files of images, as the base asks for it."""
    if not _is_base(base):
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(str(base))
        return lambda paths: processor([_upright(path) for path in paths], return_tensors="pt")
    asked = json.loads((Path(base) / "manifest.json").read_text("utf-8"))["pixels"]
    return lambda paths: {{"pixel_values": torch.stack([_read(path, asked) for path in paths])}}


def _upright(path):
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(path))


def _read(path, asked):
    from PIL.Image import Resampling

    image = _upright(path).convert("RGB" if asked["channels"] == 3 else "L")
    height, width = asked["resized"]
    if image.size != (width, height):
        image = image.resize((width, height), Resampling[asked["resampling"].upper()])
    top, left = (height - asked["height"]) // 2, (width - asked["width"]) // 2
    values = np.asarray(image, np.float32).reshape(height, width, -1)
    values = values[top : top + asked["height"], left : left + asked["width"]]
    mean, std = (np.array(asked[name], np.float32) for name in ("mean", "std"))
    scaled = (values * np.float32(asked["scale"]) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, 0)))


def _of_codes(base, fingerprint):
    """The encoder from a base's folder."""
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(base), add_pooling_layer=False).float()
    own, tensors = encoder.base_model_prefix + ".", _values(base, fingerprint)
    rest = {{k.removeprefix(own): v.float() for k, v in tensors.items() if k.startswith(own)}}
    missing, odd = encoder.load_state_dict(rest, strict=False)
    if missing or odd:
        raise ValueError(f"{{base}} does not fit at {{[*missing, *odd][0]}}")
    return encoder

{SHARED}

class Classifier(PreTrainedModel):
    """An encoder and a linear head on its first token; module paths are those of training."""

    config_class = PretrainedConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, encoder, head, labels):
        super().__init__(encoder.config)
        self.prefix = self.base_model_prefix = encoder.base_model_prefix
        self.path_of_head = head
        self.add_module(self.prefix, encoder)
        self.add_module(head, nn.Linear(self.config.hidden_size, len(labels)))
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {{label: index for index, label in enumerate(labels)}}

    def forward(self, pixel_values=None, **_others):
        hidden = self.get_submodule(self.prefix)(pixel_values=pixel_values).last_hidden_state
        return ImageClassifierOutput(logits=self.get_submodule(self.path_of_head)(hidden[:, 0]))
'''
