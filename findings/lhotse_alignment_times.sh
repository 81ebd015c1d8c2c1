#!/usr/bin/env bash
# Behaviour: when Lhotse cuts a recording, a supervision's start is moved into the time of the cut, but the word times
#   in its alignment stay in the time of the recording. In a cut that begins at 1.1 s the word spoken there still
#   begins at 1.1 s, so a mask of the aligned words is empty.
# Version: lhotse 1.33.0 (trim_to_supervisions, truncate, cut_into_windows alike).
# Who is bitten: whoever interleaves, masks or trains by the word times of cuts: all but those at the beginning of a
#   recording are late by the cut's start, and nothing is raised.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check lhotse==1.33.0 soundfile==0.14.0 urllib3==2.6.3
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import lhotse
import numpy as np
import soundfile
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem

soundfile.write('a.wav', 0.1 * np.sin(np.arange(32000) / 7), 16000)
word = AlignmentItem('again', start=1.1, duration=0.4)
segment = SupervisionSegment('s', 'a', start=1.1, duration=0.5, text='again', alignment={'word': [word]})
recordings = RecordingSet.from_recordings([Recording.from_file('a.wav')])
cuts = CutSet.from_manifests(recordings, SupervisionSet.from_segments([segment]))
cut = list(cuts.trim_to_supervisions())[0]
moved = cut.supervisions[0]
start = moved.alignment['word'][0].start
by_supervision = int(cut.supervisions_audio_mask().sum())
by_word = int(cut.supervisions_audio_mask(use_alignment_if_exists='word').sum())
print(f'lhotse {lhotse.__version__}: a cut from {cut.start} s on; its supervision begins at {moved.start} s, '
      f'the word in it at {start} s')
print(f'samples of the cut in the mask: {by_supervision} by the supervision, {by_word} by the word, which lasts 6400')
assert (moved.start, start, by_supervision, by_word) == (0.0, 1.1, 8000, 0), 'the behaviour has changed'
PYTHON
