#!/usr/bin/env bash
# One would guess that a feature extractor with do_normalize gives a recording the same values whatever else is in its batch: mean 0 and
# deviation 1 over its own samples, zeros behind. So does transformers 5.23.0 where return_attention_mask is true. Where it is false, which
# is how base checkpoints of wav2vec 2.0 ship, Wav2Vec2FeatureExtractor pads first and takes the zeros into mean and deviation: half a second beside
# two seconds comes out with deviation 1.84 and mean 0.69, up to 3.4 away from what it is alone, and its padding is -0.23 and not 0.
# It matters here: a device that answers recordings as they come would give other labels than a batch of the very same files, and a site
# that encodes a batch would train on sounds that no device hears. fedge normalises each sound by itself and puts zeros behind it (P-1.16).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import importlib.metadata
import sys

import numpy as np
from transformers import Wav2Vec2FeatureExtractor

rng = np.random.default_rng(0)
short, long = (
    (0.1 * rng.standard_normal(count) + 0.05).astype(np.float32) for count in (8_000, 32_000)
)


def values(masked, sounds):
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16_000, do_normalize=True, return_attention_mask=masked
    )
    return extractor(sounds, sampling_rate=16_000, padding=True, return_tensors="np").input_values[0]


def about(masked):
    alone, beside = values(masked, [short]), values(masked, [short, long])
    own, behind = beside[: len(short)], beside[len(short) :]
    return {
        "deviation alone": round(float(alone.std()), 2),
        "deviation beside": round(float(own.std()), 2),
        "mean beside": round(float(own.mean()), 2),
        "furthest apart": round(float(np.abs(own - alone).max()), 1),
        "padding": round(float(behind[0]), 2),
    }


for package in ("transformers", "numpy"):
    print(package, importlib.metadata.version(package))
seen = {masked: about(masked) for masked in (True, False)}
for masked, said in seen.items():
    print(f"return_attention_mask={masked}: {said}")
calm = {"deviation alone": 1.0, "deviation beside": 1.0, "mean beside": 0.0, "furthest apart": 0.0}
odd = {"deviation alone": 1.0, "deviation beside": 1.84, "mean beside": 0.69, "furthest apart": 3.4}
same = seen[True] == calm | {"padding": 0.0} and seen[False] == odd | {"padding": -0.23}
print("as described" if same else "CHANGED")
sys.exit(0 if same else 1)
END
"$folder/venv/bin/python" "$folder/observe.py"
