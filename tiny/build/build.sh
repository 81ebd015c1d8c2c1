#!/usr/bin/env bash
# Makes what tiny/ ships, from text to encoder, corpus and vocoder: about 7 hours on 2 CPU cores, every stage resumable.
#   ASSETS=FOLDER tiny/build/build.sh [HOURS_OF_STORIES] [HOURS_OF_TALK]
# ASSETS holds, each under its usual name on the model hub (tiny/README.md has sources and licenses):
#   piper-joe/en_US-joe-medium.onnx and .onnx.json      the voice of the stories
#   kokoro/kokoro-v1.0.int8.onnx, vocab.json, voices/   the voices of the talk and of the unseen items
#   whisper-tiny.en/, whisper-base/                     transformers folders: the encoder's teacher, and the listener
#   human/train-clean-5/                                mini_librispeech, for the encoder alone; never shipped
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
: "${ASSETS:?expected ASSETS=FOLDER with the models and the human speech, see the head of tiny/build/build.sh}"
stories=${1:-40} talk=${2:-9} build=out/build
speech=$build/speech encoder=$build/encoder
python -m pip install --quiet -r tiny/build/requirements.txt
export OMP_NUM_THREADS=1

speak() { python -m tiny.build.speak --part="$1" --out=$speech/"$1" --workers=2 "${@:2}"; }
stage "speak the stories" speak stories --hours="$stories" --piper="$ASSETS/piper-joe/en_US-joe-medium.onnx"
stage "speak the talk" speak talk --hours="$talk" --kokoro="$ASSETS/kokoro"
stage "speak the items, main voice" speak items-main --items=1000 --piper="$ASSETS/piper-joe/en_US-joe-medium.onnx"
stage "speak the items, unseen voice" speak items-unseen --items=500 --kokoro="$ASSETS/kokoro"

train_encoder() {
  python -m tiny.build.train_encoder --stage="$1" --build=$encoder --out=tiny/hubert \
    --teacher="$ASSETS/whisper-tiny.en" \
    --human="$ASSETS/human/train-clean-5" \
    --speech=$speech/stories,$speech/talk,$speech/items-main,$speech/items-unseen
}
for part in features classes train export score; do stage "encoder: $part" train_encoder $part; done
stage "corpus: units and words" python -m tiny.build.pack --speech=$speech
stage "corpus: units folders" python -m tiny.unpack
[ -e $build/vocoder ] || stage "vocoder" python -m training.vocoder --corpus=tiny --audio=$speech/stories \
  --units=out/data/stories --out=$build/vocoder
stage "vocoder: words, naturalness" python -m tiny.build.score_vocoder --vocoder=$build/vocoder \
  --items=$speech/items-main --asr="$ASSETS/whisper-base"
mkdir -p tiny/vocoder && cp $build/vocoder/* tiny/vocoder/
ls -l tiny/*.npz.xz tiny/hubert tiny/vocoder
