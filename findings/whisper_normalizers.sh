#!/usr/bin/env bash
# Behaviour: Whisper's text normalizers change words that word error rates are counted on. The English one takes
#   "o" and "oh" for the digit 0 ("O'Neil's" becomes "0 neil is", "Oh no" "0 no") and gives nothing for "and a
#   half". The basic one, for all other languages, replaces every combining mark by a blank: a Hindi or Tamil
#   word falls into its consonants, and two words that differ in vowels alone become one.
# Version: transformers 5.23.0 (WhisperTokenizer.normalize, .basic_normalize, and the classes behind them).
# Who is bitten: whoever compares word error rates across normalizers, or counts them with this one on speech
#   in a script whose vowels are marks: the rate is one of consonants, of two to four times as many words.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 regex==2026.11.19
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON' 2>"$dir/warnings" || { cat "$dir/warnings"; exit 1; }
import transformers
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

print('transformers', transformers.__version__)
english = EnglishTextNormalizer({}) # without the list of British spellings, which changes none of these words
basic = BasicTextNormalizer()
seen = {}
for normalize, text in ((english, "O'Neil's"), (english, 'Oh no'), (english, 'and a half'),
                        (basic, '\u0926\u093f\u0928'), (basic, '\u0926\u0940\u0928')): # Hindi: din, day; diin, poor
    seen[text] = normalize(text).split()
    print(f'{type(normalize).__name__}({text!r}) = {seen[text]}')
assert seen["O'Neil's"] == ['0', 'neil', 'is'] and seen['Oh no'] == ['0', 'no'] and seen['and a half'] == []
assert list(seen.values())[-2:] == [['\u0926', '\u0928']] * 2, 'the behaviour has changed'
PYTHON
