#!/usr/bin/env bash
# Makes what tiny/ ships, from text to encoder, corpus and vocoder: about 7 hours on 2 CPU cores, every stage resumable.
#   ASSETS=FOLDER tiny/build/build.sh
#   ASSETS=FOLDER tiny/build/build.sh more VOICES TALK STORIES WORLD    hours of the wide corpus, which is added to what is
#                                                                      packed: what out/build/speech has of it stays
# ASSETS holds, each under its usual name on the model hub (tiny/README.md has sources and licenses):
#   piper-joe/en_US-joe-medium.onnx and .onnx.json      the voice of the stories
#   kokoro/kokoro-v1.0.int8.onnx, vocab.json, voices/   the voices of the talk and of the unseen items
#   whisper-tiny.en/, whisper-base/                     transformers folders: the encoder's teacher, and the listener
#   human/train-clean-5/                                mini_librispeech, for the encoder alone; never shipped
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
: "${ASSETS:?expected ASSETS=FOLDER with the models and the human speech, see the head of tiny/build/build.sh}"
build=out/build
speech=$build/speech encoder=$build/encoder
python -m pip install --quiet -r tiny/build/requirements.txt
export OMP_NUM_THREADS=1

speak() { # speak PART FOLDER OPTIONS...
  python -m tiny.build.speak --part="$1" --out=$speech/"$2" --workers="${WORKERS:-2}" "${@:3}" \
    --piper="$ASSETS/piper-joe/en_US-joe-medium.onnx" --kokoro="$ASSETS/kokoro"
}
# The wide corpus goes on where the parts that everyone unpacks end: after 10,500 stories and 500 utterances.
more() { # more VOICES TALK STORIES WORLD: hours of each, those of stories and talk with what comes before
  stage "speak stories in other voices" speak voices voices --hours="$1" --shard_docs=40
  stage "speak more talk" speak talk talk-more --hours="$2" --shard_docs=20 --first=25
  stage "speak the world" speak world world --hours="$4"
  stage "speak more stories" speak stories stories-more --hours="$3" --first=105
  stage "speak the knowledge items" speak knowledge knowledge --items=1000
}
if [ "${1:-}" = more ]; then
  more "${@:2}"
  stage "corpus: units and words" python -m tiny.build.pack --speech=$speech --keep
  ls -l tiny/*.npz.xz
  exit
fi

stage "speak the stories" speak stories stories --hours=22.9
stage "speak the talk" speak talk talk --hours=0.6
stage "speak the items, main voice" speak items-main items-main --items=1000
stage "speak the items, unseen voice" speak items-unseen items-unseen --items=500
more 5 3 33 3

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
