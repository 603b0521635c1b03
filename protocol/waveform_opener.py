"""The file ``open_adapter.py`` of a PEFT folder of a base that hears samples. (P-5.1)"""

from __future__ import annotations

from protocol.media_opener import preface
from protocol.peft_opener import SHARED

IMPORTS = """from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.modeling_outputs import SequenceClassifierOutput"""
WAVEFORM_OPENER = f'''{preface(reader="features", example="a sound.wav", imports=IMPORTS)}

def load(folder, base):
    """The adapter in `folder` on `base`, ready to answer."""
    folder, base = Path(folder), str(base)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    note = json.loads((folder / "release.json").read_text("utf-8"))
    projected = config["auto_mapping"]["pooling"] == "projected"
    if _is_base(base):
        source = _of_codes(base, note["base_fingerprint"], projected)
    else:
        source = AutoModelForAudioClassification.from_pretrained(base, dtype=torch.float32)
    (head,) = config["modules_to_save"]
    projector = source.projector if projected else None
    return _adapted(Classifier(source.base_model, projector, head, note["labels"]), folder, config)


def features(base):
    """What the model reads of WAV files (one channel, PCM of 16 bits), as the base asks for it.

    How many seconds it hears is in this folder, not in the model that the base was built from.
    """
    config = json.loads(Path(__file__).with_name("adapter_config.json").read_text("utf-8"))
    if _is_base(base):
        asked = json.loads((Path(base) / "manifest.json").read_text("utf-8"))["waveform"]
        extractor = Wav2Vec2FeatureExtractor(
            sampling_rate=asked["rate"],
            do_normalize=asked["normalised"],
            return_attention_mask=asked["masked"],
        )
    else:
        extractor = AutoFeatureExtractor.from_pretrained(str(base))
    rate, masked = extractor.sampling_rate, extractor.return_attention_mask
    length = rate * config["auto_mapping"]["seconds"]

    def read(paths):
        inputs = extractor(
            [_samples(path, rate) for path in paths],
            sampling_rate=rate,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_attention_mask=True,  # a sound is normalised by itself, not with what is behind it
            return_tensors="pt",
        )
        return inputs if masked else {{"input_values": inputs["input_values"]}}

    return read


def _samples(path, rate):
    import wave

    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, rate):
            raise ValueError(f"{{path}} is not of one channel, 16 bits and {{rate}} samples a second")
        data = file.readframes(file.getnframes())
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def _of_codes(base, fingerprint, projected):
    """The model from a base's folder; what it lacks is not used."""
    source = AutoModelForAudioClassification.from_config(AutoConfig.from_pretrained(base)).float()
    positions = source.base_model.encoder.pos_conv_embed.conv
    torch.nn.utils.parametrize.remove_parametrizations(positions, "weight")  # codes have the product
    own = (source.base_model_prefix + ".",) + (("projector.",) if projected else ())
    rest = {{k: v.float() for k, v in _values(base, fingerprint).items() if k.startswith(own)}}
    missing, odd = source.load_state_dict(rest, strict=False)
    odd += [name for name in missing if name.startswith(own)]
    if odd:
        raise ValueError(f"{{base}} does not fit at {{odd[0]}}")
    return source

{SHARED}

class Classifier(PreTrainedModel):
    """An encoder, and a linear head on the mean of what it gives; module paths are those of training."""

    config_class = PretrainedConfig
    main_input_name = "input_values"
    _supports_sdpa = True

    def __init__(self, encoder, projector, head, labels):
        super().__init__(encoder.config)
        self.prefix = self.base_model_prefix = encoder.base_model_prefix
        self.path_of_head = head
        self.add_module(self.prefix, encoder)
        width = self.config.hidden_size
        self.projector = nn.Identity()
        if projector is not None:
            self.projector, width = projector, projector.out_features
        self.add_module(head, nn.Linear(width, len(labels)))
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {{label: index for index, label in enumerate(labels)}}

    def forward(self, input_values=None, attention_mask=None, **_others):
        encoder = self.get_submodule(self.prefix)
        if attention_mask is not None:  # a sound of less than a position has one
            attention_mask = attention_mask.clone()
            attention_mask[:, : _least(self.config)] = 1
        encoded = encoder(input_values, attention_mask=attention_mask).last_hidden_state
        heard = self.projector(encoded)
        if attention_mask is None:
            heard = heard.mean(1)
        else:
            own = encoder._get_feature_vector_attention_mask(heard.shape[1], attention_mask)
            heard = (heard * own.unsqueeze(-1)).sum(1) / own.sum(1, keepdim=True)
        return SequenceClassifierOutput(logits=self.get_submodule(self.path_of_head)(heard))


def _least(config):
    """Samples that one position hears."""
    least = 1
    for taps, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
        least = (least - 1) * stride + taps
    return least
'''
