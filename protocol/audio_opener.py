"""The file ``open_adapter.py`` of a PEFT folder of a base of sounds. (P-5.1)"""

from __future__ import annotations

from protocol.media_opener import preface
from protocol.peft_opener import SHARED

IMPORTS = """from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
)
from transformers.modeling_outputs import SequenceClassifierOutput"""
AUDIO_OPENER = f'''{preface(reader="features", example="a sound.wav", imports=IMPORTS)}

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
    model = Classifier(source.encoder, source.projector if projected else None, head, note["labels"])
    return _adapted(model, folder, config)


def features(base):
    """What the model reads of WAV files (one channel, PCM of 16 bits), as the base asks for it."""
    if _is_base(base):
        asked = json.loads((Path(base) / "manifest.json").read_text("utf-8"))["log_mel"]
        extractor = WhisperFeatureExtractor(
            feature_size=asked["bands"],
            sampling_rate=asked["rate"],
            hop_length=asked["hop"],
            chunk_length=asked["seconds"],
            n_fft=asked["window"],
        )
    else:
        extractor = AutoFeatureExtractor.from_pretrained(str(base))
    rate = extractor.sampling_rate
    return lambda paths: extractor(
        [_samples(path, rate) for path in paths], sampling_rate=rate, return_tensors="pt"
    )


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
    own = ("encoder.", "projector.") if projected else ("encoder.",)
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
    main_input_name = "input_features"
    _supports_sdpa = True

    def __init__(self, encoder, projector, head, labels):
        super().__init__(encoder.config)
        self.base_model_prefix = "encoder"
        self.path_of_head = head
        self.encoder = encoder
        width = self.config.hidden_size
        self.projector = nn.Identity()
        if projector is not None:
            self.projector, width = projector, projector.out_features
        self.add_module(head, nn.Linear(width, len(labels)))
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {{label: index for index, label in enumerate(labels)}}

    def forward(self, input_features=None, **_others):
        heard = self.projector(self.encoder(input_features).last_hidden_state).mean(1)
        return SequenceClassifierOutput(logits=self.get_submodule(self.path_of_head)(heard))
'''
