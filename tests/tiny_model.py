"""A tiny model that every part can be tried on: a random two-layer BERT with words of its own."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = [
    "turn on the kitchen light",
    "play some music now",
    "set a timer for ten minutes",
    "the",
    "",
]

WORDS = [
    "the",
    "a",
    "an",
    "and",
    "or",
    "not",
    "to",
    "of",
    "in",
    "on",
    "at",
    "is",
    "are",
    "was",
    "it",
    "this",
    "that",
    "my",
    "your",
    "please",
    "can",
    "could",
    "you",
    "i",
    "we",
    "me",
    "turn",
    "switch",
    "set",
    "make",
    "put",
    "start",
    "stop",
    "play",
    "pause",
    "next",
    "open",
    "close",
    "lock",
    "show",
    "tell",
    "give",
    "what",
    "when",
    "where",
    "who",
    "how",
    "light",
    "lights",
    "lamp",
    "kitchen",
    "bedroom",
    "bath",
    "room",
    "hall",
    "garden",
    "door",
    "window",
    "music",
    "song",
    "radio",
    "volume",
    "loud",
    "soft",
    "louder",
    "timer",
    "alarm",
    "minute",
    "minutes",
    "hour",
    "hours",
    "morning",
    "evening",
    "night",
    "day",
    "week",
    "now",
    "later",
    "today",
    "tomorrow",
    "off",
    "up",
    "down",
    "red",
    "green",
    "blue",
    "white",
    "warm",
    "cold",
    "hot",
    "water",
    "coffee",
    "tea",
    "milk",
    "bread",
    "list",
    "buy",
    "add",
    "call",
    "mail",
    "send",
    "message",
    "read",
    "news",
    "weather",
    "rain",
    "sun",
    "snow",
    "wind",
    "cancel",
    "delete",
    "new",
    "old",
    "big",
    "small",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "first",
    "last",
    "some",
    "any",
    "all",
    "more",
    "less",
    "very",
    "too",
    "quick",
    "slow",
    "happy",
    "sad",
    "good",
    "bad",
]


def write_tiny_source(folder: Path, *, model_type: str = "bert", seed: int = 0) -> Path:
    """A Hugging Face folder with random weights, a word-level tokenizer and mean pooling."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        )
    )
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).float()
        for parameter in model.parameters():  # larger than the usual init: the text shall matter
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, 0.0, 0.15)
    model.save_pretrained(folder)
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
