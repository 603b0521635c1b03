"""A soft prompt before a text: rows that no word has. (P-1.13, docs/adr/0055)

On a device they have ids of their own, behind the vocabulary's: whoever reads a text with a prompt begins it
with these ids, once, and cache, positions, mask and pieces treat them as any others. In training, where texts
are read whole, the rows lie before every text and leave again behind the last layer.
"""

from __future__ import annotations

import numpy as np

from base_model.decoder.products import Building, row_shape
from protocol.decoder_manifest import IDS
from protocol.forms import SOFT_PROMPT

END = 2**62  # behind the end of any dimension


def word_ids(building: Building) -> str:
    """Ids that the table of words has, (rows, new); a prompt's are the last word's."""
    last = building.nodes.numbers("vocabulary/last", building.shape.vocabulary - 1)
    return building.nodes.add("Min", [IDS, last], "ids/words")


def with_prompt(building: Building, words: str) -> str:
    """``words``, rows (tokens, hidden), with row i of the prompt in the place of the id vocabulary + i.

    ONNX Runtime refuses an id of no row. Rows of words are taken as they are, bit for bit.
    """
    nodes, hidden = building.nodes, building.shape.hidden
    none = nodes.tensor(f"{SOFT_PROMPT}/none", np.zeros((1, hidden), np.float32))
    rows = nodes.add("Concat", [none, _prompt(building)], f"{SOFT_PROMPT}/table", axis=0)
    beyond = nodes.add("Sub", [IDS, "vocabulary/last"], "ids/beyond")
    beyond = nodes.add("Max", [beyond, nodes.numbers("zero/scalar", 0)], "ids/prompt")
    taken = nodes.add("Gather", [rows, beyond], f"{SOFT_PROMPT}/taken", axis=0)
    taken = nodes.add("Reshape", [taken, row_shape(nodes, hidden)], f"{SOFT_PROMPT}/rows")
    column = nodes.add("Reshape", [beyond, row_shape(nodes, 1)], "ids/prompt/column")
    given = nodes.add("Greater", [column, nodes.numbers("zero/scalar", 0)], "ids/prompt/given")
    return nodes.add("Where", [given, taken, words], "hidden/given")


def before_texts(building: Building, words: str) -> str:
    """``words`` of texts (rows, tokens) with the prompt before each, rows (rows * (prompt + tokens), hidden).

    "tokens" is then the shape of texts with their prompts.
    """
    nodes, hidden = building.nodes, building.shape.hidden
    prompt = _prompt(building)
    rows = nodes.add("Shape", [IDS], "ids/rows", start=0, end=1)
    length = nodes.add("Shape", [prompt], f"{SOFT_PROMPT}/length", start=0, end=1)
    whole = nodes.add("Shape", [IDS], "ids/tokens", start=1)
    whole = nodes.add("Add", [whole, length], "ids/tokens/whole")
    nodes.add("Concat", [rows, whole], "tokens", axis=0)
    deep = nodes.add("Concat", [rows, nodes.numbers("one/one", [1, 1])], "ids/deep", axis=0)
    block = nodes.add("Expand", [prompt, deep], f"{SOFT_PROMPT}/texts")
    ends = nodes.numbers(f"any/{hidden}", [-1, hidden])
    shape = nodes.add("Concat", [rows, ends], "ids/texts", axis=0)
    texts = nodes.add("Reshape", [words, shape], "words/texts")
    both = nodes.add("Concat", [block, texts], "hidden/texts", axis=1)
    return nodes.add("Reshape", [both, row_shape(nodes, hidden)], "hidden/begun")


def without_prompt(building: Building, rows: str) -> str:
    """Rows of the texts' own tokens of those that :func:`before_texts` began."""
    nodes, hidden = building.nodes, building.shape.hidden
    width = nodes.numbers(f"width/{hidden}", [hidden])
    shape = nodes.add("Concat", ["tokens", width], "tokens/hidden", axis=0)
    texts = nodes.add("Reshape", [rows, shape], "hidden/whole")
    ends = [f"{SOFT_PROMPT}/length", nodes.numbers("end", [END]), nodes.numbers("axis/1", [1])]
    own = nodes.add("Slice", [texts, *ends], "hidden/own")
    return nodes.add("Reshape", [own, row_shape(nodes, hidden)], "hidden/own/rows")


def _prompt(building: Building) -> str:
    """The slot, with the scale of the family."""
    nodes, shape = building.nodes, building.shape
    empty = np.zeros((0, shape.hidden), np.float32)
    prompt = nodes.slot(SOFT_PROMPT, ["prompt", shape.hidden], empty)
    if shape.prompt_scale == 1:
        return prompt
    scale = nodes.number(f"{SOFT_PROMPT}/by", shape.prompt_scale)
    return nodes.add("Mul", [prompt, scale], f"{SOFT_PROMPT}/scaled")
