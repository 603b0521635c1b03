"""The file ``open_adapter.py`` of a PEFT folder of a base of documents. (P-5.1)"""

from __future__ import annotations

from protocol.media_opener import preface
from protocol.peft_opener import SHARED

IMPORTS = """from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput"""
PAGE_OPENER = f'''{preface(reader="pages", example="a page.json", imports=IMPORTS, of='"FOLDER", "BASE"')}

def load(folder, base):
    """The adapter in `folder` on `base`, ready to answer."""
    folder, base = Path(folder), str(base)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    note = json.loads((folder / "release.json").read_text("utf-8"))
    pooling, (head,) = config["auto_mapping"]["pooling"], config["modules_to_save"]
    if _is_base(base):
        encoder = _of_codes(base, pooling, note["base_fingerprint"])
    else:
        encoder = AutoModel.from_pretrained(base, dtype=torch.float32)
    return _adapted(Classifier(encoder, pooling, head, note["labels"]), folder, config)


def pages(folder, base):
    """What the model reads of pages, cut as in training: of JSON files, or of what would be in them.

    A page is a list of `words` and one of their `boxes`, [x0, y0, x1, y1] in thousandths of its size.
    """
    length = json.loads((Path(folder) / "release.json").read_text("utf-8"))["max_length"]
    if _is_base(base):
        file = Path(base) / "tokenizer.json"
        pad = json.loads(file.read_text("utf-8"))["padding"]["pad_token"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token=pad)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(base))

    def read(several):
        documents = [
            page if isinstance(page, dict) else json.loads(Path(page).read_text("utf-8"))
            for page in several
        ]
        encoded = tokenizer(
            [page["words"] for page in documents],
            is_split_into_words=True,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        boxes = [
            [
                page["boxes"][word] if word is not None else [1000 * int(at > 0 and seen)] * 4
                for at, (word, seen) in enumerate(zip(encoded.word_ids(row), encoded["attention_mask"][row]))
            ]
            for row, page in enumerate(documents)
        ]
        inputs = {{name: encoded[name] for name in ("input_ids", "attention_mask")}}
        return inputs | {{"bbox": torch.tensor(boxes)}}

    return read


def _of_codes(base, pooling, fingerprint):
    """The encoder from a base's folder; what it lacks is not used."""
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(base)).float()
    own, tensors = encoder.base_model_prefix + ".", _values(base, fingerprint)
    rest = {{k.removeprefix(own): v.float() for k, v in tensors.items() if k.startswith(own)}}
    missing, odd = encoder.load_state_dict(rest, strict=False)
    odd += [name for name in missing if pooling == "pooler" or not name.startswith("pooler.")]
    if odd:
        raise ValueError(f"{{base}} does not fit at {{odd[0]}}")
    return encoder

{SHARED}

class Classifier(PreTrainedModel):
    """An encoder, its pooling, a linear head; module paths are those that the adapter was trained under."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, encoder, pooling, head, labels):
        super().__init__(encoder.config)
        self.prefix = self.base_model_prefix = encoder.base_model_prefix
        self.pooling, self.path_of_head = pooling, head
        if pooling != "pooler":
            encoder.pooler = nn.Identity()
        self.add_module(self.prefix, encoder)
        self.add_module(head, nn.Linear(self.config.hidden_size, len(labels)))
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {{label: index for index, label in enumerate(labels)}}

    def get_input_embeddings(self):
        return self.get_submodule(self.prefix).get_input_embeddings()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, bbox=None, **_others):
        inputs = {{"input_ids": input_ids}}
        if inputs_embeds is not None:  # behind a soft prompt, which stands at no place
            inputs = {{"inputs_embeds": inputs_embeds}}
            bbox = nn.functional.pad(bbox, (0, 0, inputs_embeds.shape[1] - bbox.shape[1], 0))
        encoded = self.get_submodule(self.prefix)(attention_mask=attention_mask, bbox=bbox, **inputs)
        hidden = encoded.last_hidden_state
        if self.pooling == "mean":
            weight = torch.ones_like(hidden[..., :1])
            if attention_mask is not None:
                weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            pooled = encoded.pooler_output if self.pooling == "pooler" else hidden[:, 0]
        return SequenceClassifierOutput(logits=self.get_submodule(self.path_of_head)(pooled))
'''
