#!/usr/bin/env bash
# One would guess that a tokenizer which transformers opens from a GGUF file cuts text as the file says, or says that
# it cannot. A GGUF file names the cut in a word, `tokenizer.ggml.pre`. transformers 5.23.0 does not look at it: a file
# that says `smollm`, where digits stand alone, opens as one that says `gpt-2`, without a warning. A blank before a digit
# then belongs to it, and the ids are others than those that the model was trained on.
# It matters here: bases are built from GGUF files, and a tokenizer that is a little wrong trains and answers a little
# wrong for ever. fedge rebuilds the tokenizer by itself, and refuses a cut that it does not know.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 gguf==0.19.0 tokenizers==0.23.3 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import importlib.metadata
import sys
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

WORDS = ["<end>", "a", "1", "2", "Ġ", "ĠĠ", "ĠĠĠ", "Ġ1"]
MERGES = ["Ġ Ġ", "ĠĠ Ġ", "Ġ 1"]
TEXT = "a   12"


def write(folder, cut):
    """A file with one tiny matrix and this vocabulary."""
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(WORDS) - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((len(WORDS), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").tokenize(TEXT)


def direct(cut):
    model = models.BPE(
        vocab={word: index for index, word in enumerate(WORDS)},
        merges=[tuple(merge.split(" ")) for merge in MERGES],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cut
    return tokenizer.encode(TEXT).tokens


for name in ("transformers", "gguf", "tokenizers"):
    print(name, importlib.metadata.version(name))
root = Path(sys.argv[1])
by_file = {cut: write(root / cut, cut) for cut in ("smollm", "gpt-2")}
level = pre_tokenizers.ByteLevel(add_prefix_space=False)
smollm = direct(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]))
print("smollm, as transformers opens the file:", by_file["smollm"])
print("gpt-2, as transformers opens the file: ", by_file["gpt-2"])
print("smollm, as it was published:           ", smollm)
as_seen = by_file["smollm"] == by_file["gpt-2"] and by_file["smollm"] != smollm
sys.exit(0 if as_seen else 1)
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/observe.py" "$folder"
