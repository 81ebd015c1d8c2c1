#!/usr/bin/env bash
# Behaviour: of an MP3 without a Xing header, libsndfile takes the size of the file over the bit rate of the first
#   frame for its length, and reads no further, even if frames follow: speech that begins loud and ends in silence
#   loses more than half of its samples, and no error is raised. In the reverse order the length is far too large.
# Version: soundfile 0.14.0 with the libsndfile 1.2.2 in its wheel.
# Who is bitten: whoever reads MP3 of a variable rate that was written to a pipe or cut from a stream, where no
#   encoder can go back to write the header: soundfile.info and soundfile.read are both wrong.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import struct

import numpy as np
import soundfile

print('soundfile', soundfile.__version__, soundfile.__libsndfile_version__)
noise = 0.2 * np.random.default_rng(0).standard_normal(16000 * 20)
silence = np.zeros(16000 * 20)
for name, wave in (('loud_first', [noise, silence]), ('silent_first', [silence, noise])):
    soundfile.write(f'{name}.mp3', np.concatenate(wave), 16000, bitrate_mode='VARIABLE', compression_level=0.5)
    data = open(f'{name}.mp3', 'rb').read()
    tag = max(data.find(b'Xing'), data.find(b'Info'))
    n_frames = struct.unpack_from('>I', data, tag + 8)[0]
    open(f'{name}.mp3', 'wb').write(data[data.index(data[:2], tag):]) # the frames without the header
    held = 576 * n_frames # samples, as MPEG-2 layer 3 has 576 a frame
    stated = soundfile.info(f'{name}.mp3').frames
    read = len(soundfile.read(f'{name}.mp3')[0])
    print(f'{name}: {held} samples in {n_frames} frames; soundfile.info: {stated}; soundfile.read: {read}')
    assert (read == stated < held / 2) if name == 'loud_first' else (stated > 2 * held), 'the behaviour has changed'
PYTHON
