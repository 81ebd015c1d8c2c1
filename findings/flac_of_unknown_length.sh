#!/usr/bin/env bash
# Behaviour: FLAC whose header states 0 samples, which is valid and means that the number is unknown (RFC 9639,
#   section 8.2), has 2^63 - 1 samples for soundfile.info. soundfile.read asks for as many and fails; reading in
#   blocks fails after the last one ("Internal psf_fseek() failed"), and its samples are lost with it.
# Version: soundfile 0.14.0 with the libsndfile 1.2.2 in its wheel.
# Who is bitten: whoever reads what flac or FFmpeg wrote to a pipe, as neither can go back to write the number.
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
wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(32000) / 16000)
soundfile.write('piped.flac', wave, 16000)
data = bytearray(open('piped.flac', 'rb').read())
data[21] &= 0xf0 # the number of samples has 36 bits
data[22:26] = bytes(4)
open('piped.flac', 'wb').write(data)
frames = soundfile.info('piped.flac').frames
n_read = 0
error = None
try:
    for block in soundfile.blocks('piped.flac', 16384):
        n_read += len(block)
except soundfile.LibsndfileError as e:
    error = e.error_string
print(f'written: 32000 samples; soundfile.info: {frames}; read in blocks: {n_read}, then {error!r}')
assert frames == 2 ** 63 - 1 and n_read < 32000 and error, 'the behaviour has changed'
PYTHON
