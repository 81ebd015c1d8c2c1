#!/usr/bin/env bash
# Behaviour: tgt writes a TextGrid as a table (format='table') without quoting: a label with a comma or a quotation
#   mark makes a row that a reader of CSV cuts into more columns, or of which it drops the marks.
# Version: tgt 1.5.
# Who is bitten: whoever takes word times from such a table: words of a transcript with punctuation come back
#   changed, and only some of them in rows of a wrong length.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tgt==1.5 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import csv
from importlib.metadata import version

import tgt

labels = ['once', '"upon"', 'a,', 'time']
grid = tgt.TextGrid()
tier = tgt.IntervalTier(0, 4, 'words')
for i, label in enumerate(labels):
    tier.add_annotation(tgt.Interval(i, i + 1, label))
grid.add_tier(tier)
tgt.write_to_file(grid, 'words.csv', format='table')
rows = list(csv.reader(open('words.csv')))[1:]
print('tgt', version('tgt'))
for label, row in zip(labels, rows):
    print(f'{label!r} comes back as {row[4:]}')
assert [row[4:] for row in rows] == [['once'], ['upon'], ['a', ''], ['time']], 'the behaviour has changed'
PYTHON
