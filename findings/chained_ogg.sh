#!/usr/bin/env bash
# Behaviour: libsndfile reads the first part of a chained Ogg file alone, and says nothing. Two Vorbis files
#   joined by cat are one valid file (RFC 3533, section 4: logical bitstreams may be chained); half of the
#   samples are missing.
# Version: soundfile 0.14.0 with the libsndfile in its wheel.
# Who is bitten: whoever tokenizes recordings of internet radio, recorders or TTS servers that append streams:
#   the duration is too short, the text no longer fits, and no error is raised.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import numpy as np
import soundfile

print('soundfile', soundfile.__version__, soundfile.__libsndfile_version__)
t = np.arange(32000) / 16000
for name, hz in (('a', 300), ('b', 500)):
    soundfile.write(f'{name}.ogg', 0.3 * np.sin(2 * np.pi * hz * t), 16000, format='OGG', subtype='VORBIS')
with open('chained.ogg', 'wb') as joined:
    joined.write(open('a.ogg', 'rb').read() + open('b.ogg', 'rb').read())
frames = soundfile.info('chained.ogg').frames
wave, _ = soundfile.read('chained.ogg')
print(f'written: 64000 samples in two parts; soundfile.info: {frames}; soundfile.read: {len(wave)}')
assert frames == len(wave) == 32000, 'the behaviour has changed: the second part is read now'
PYTHON
