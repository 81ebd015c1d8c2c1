#!/usr/bin/env bash
# Makes what tiny/ ships, from text to encoder, corpus and vocoder: about 9 hours on 2 CPU cores, every stage resumable.
#   ASSETS=FOLDER tiny/build/build.sh
#   ASSETS=FOLDER tiny/build/build.sh more VOICES TALK STORIES WORLD
# The second speaks until the wide corpus has these hours (the talk and stories that everyone unpacks count), and packs
# what is new beside what is packed. It can be cut and repeated, on other machines too.
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
more() { # more VOICES TALK STORIES WORLD: until there are so many hours of each; what is packed is not spoken again
  stage "speak stories in other voices" speak voices voices --hours="$1" --shard_docs=40 --packed=tiny
  stage "speak more talk" speak talk talk-more --hours="$2" --shard_docs=20 --packed=tiny --first=25
  stage "speak the world" speak world world --hours="$4" --packed=tiny
  stage "speak more stories" speak stories stories-more --hours="$3" --packed=tiny --first=105
  stage "speak the knowledge items" speak knowledge knowledge --items=1000 --packed=tiny
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
rm -f tiny/*.npz.xz # all of it is made anew
more 5.3 3.12 33 3 # hours are planned by words a second, and come out a little shorter

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
# Only now: a torchaudio that does not fit torch breaks transformers (findings/torchaudio_breaks_transformers.sh).
python -m pip install --quiet distillmos==0.9.1
stage "vocoder: words, naturalness" python -m tiny.build.score_vocoder --vocoder=$build/vocoder \
  --items=$speech/items-main --asr="$ASSETS/whisper-base"
mkdir -p tiny/vocoder && cp $build/vocoder/* tiny/vocoder/
ls -l tiny/*.npz.xz tiny/hubert tiny/vocoder
