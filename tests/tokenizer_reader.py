"""
What AutoTokenizer makes of folders, in any version of transformers: needs nothing else, so it also runs in the
environments that test_tokenizers.py makes.

    python tests/tokenizer_reader.py FOLDER ...     prints {FOLDER: [what is wrong, ...]} as JSON

A folder holds expected.json: {'size': number of ids, 'texts': [[text, ids, text of the ids], ...]}, ids with what the
tokenizer puts around a text. FOLDER/saved is written: the tokenizer saved again, beside the same config.json.
"""
import json
import shutil
import sys
from pathlib import Path

from transformers import AutoTokenizer


def differences(folder, expected):
    """(the tokenizer that AutoTokenizer reads, what differs from expected.json)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wrong = []
    if len(tokenizer) != expected['size']:
        wrong.append(f"{len(tokenizer)} ids, expected {expected['size']}")
    for text, ids, text_back in expected['texts']:
        read = tokenizer(text)['input_ids']
        if read != ids:
            wrong.append(f"{text!r} is {read}, expected {ids}")
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        if decoded != text_back:
            wrong.append(f"{ids} are {decoded!r}, expected {text_back!r}")
    return tokenizer, wrong

def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}

def problems(folder):
    """What is wrong with the tokenizer of a folder, and with it after it was saved and saved again."""
    folder = Path(folder)
    expected = json.loads((folder / 'expected.json').read_text())
    tokenizer, wrong = differences(folder, expected)
    saved = folder / 'saved'
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir()
    for name in ('config.json', 'expected.json'):
        if (folder / name).is_file():
            shutil.copy(folder / name, saved)
    tokenizer.save_pretrained(saved)
    first = files(saved)
    tokenizer, wrong_then = differences(saved, expected)
    wrong += [f"saved again: {line}" for line in wrong_then]
    tokenizer.save_pretrained(saved)
    if files(saved) != first:
        wrong.append("the second save_pretrained changes files")
    return wrong

if __name__ == '__main__':
    print(json.dumps({folder: problems(folder) for folder in sys.argv[1:]}))
