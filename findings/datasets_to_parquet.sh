#!/usr/bin/env bash
# Behaviour: to_parquet of a dataset with a column of the feature Audio writes the paths of the files and no audio: the
#   parquet file of two recordings of 64 kB has 1.4 kB. push_to_hub, which writes parquet too, puts the bytes in.
# Version: datasets 5.2.0 with pyarrow 26.0.1.
# Who is bitten: whoever hands a speech corpus on as parquet, or trains from a copy of it on another machine: the file
#   is read without an error until the first audio is decoded, or by a reader that counts the missing ones.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 soundfile==0.14.0 \
  numpy==2.4.6
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" - <<'PYTHON'
import os

import datasets
import numpy as np
import pyarrow.parquet
import soundfile

for name in ('a.wav', 'b.wav'):
    soundfile.write(name, 0.1 * np.sin(np.arange(32000) / 7), 16000)
columns = {'audio': ['a.wav', 'b.wav'], 'text': ['one', 'two']}
dataset = datasets.Dataset.from_dict(columns).cast_column('audio', datasets.Audio())
dataset.to_parquet('corpus.parquet')
rows = pyarrow.parquet.read_table('corpus.parquet').to_pylist()
print(f"datasets {datasets.__version__}: {os.path.getsize('corpus.parquet'):,} bytes of parquet for "
      f"{2 * os.path.getsize('a.wav'):,} bytes of audio; the first row: {rows[0]}")
assert [row['audio']['bytes'] for row in rows] == [None, None], 'the behaviour has changed: the bytes are written now'
PYTHON
