"""The embedded model with other characters, so that it can read and write JSON objects."""

import json
import shutil
from pathlib import Path

TINY = Path(__file__).parents[1] / "jgrpo" / "assets" / "tiny"
# What problems of `chain` do not need gives way to what JSON needs.
_INSTEAD = {"*": "{", "/": '"', "%": "}", ".": "[", "^": "]", "z": "_"}


def with_json(folder: Path) -> Path:
    """A copy of the embedded model whose tokenizer knows the characters of JSON; its folder."""
    shutil.copytree(TINY, folder)
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    vocab = words["model"]["vocab"]
    words["model"]["vocab"] = {_INSTEAD.get(word, word): i for word, i in vocab.items()}
    path.write_text(json.dumps(words))
    return folder
