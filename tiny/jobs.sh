#!/usr/bin/env bash
# Sourced by speedrun.sh, papers/claims.sh and papers/turn.sh, after setup.sh and with $out set: how they run their
# steps, and the steps that make token shards of the embedded corpus.
mkdir -p "$out/logs"

step() { # step NAME LOG COMMAND...: writes the command's output to a log, and shows the last line of it
  local name=$1 log=$out/logs/$2.log start=$SECONDS; shift 2
  "$@" >"$log" 2>&1 || { echo "FAILED  $name; $log ends with:"; tail -n 5 "$log"; exit 1; }
  printf '%5d s  %-46s %s\n' $((SECONDS - start)) "$name" "$(tail -n 1 "$log" | cut -c 1-110)"
}
once() { # once FILE step ...: runs the step unless FILE is there
  if [ -e "$1" ]; then echo "     -   $3: $1 is there already"; else "${@:2}"; fi
}
wide_text() { # text that knows more than the speech: out/data/world.txt, out/tokens/world (config/tiny_textlm.py)
  once out/data/world.txt step "corpus: text of the world" world python -m tiny.world --out=out/data/world.txt
  once out/tokens/world/info.json step "text -> token shards: world" tokens-world \
    python interleave.py --text=out/data/world.txt --sources=text --eot --val_frac=0.005 --out=out/tokens/world
}
# wide_shards SUFFIX OPTIONS...: units, words and text -> out/tokens/wideSUFFIX and out/tokens/wide-talkSUFFIX
wide_shards() {
  once out/tokens/wide$1/info.json step "units + words -> token shards: stories, voices, world" tokens-wide$1 \
    python interleave.py --units=out/data/stories,out/data/stories-more,out/data/voices,out/data/world \
    --text=out/data/world.txt --eot --val_frac=0.01 --out=out/tokens/wide$1 "${@:2}"
  once out/tokens/wide-talk$1/info.json step "units + words -> token shards: all talk" tokens-wide-talk$1 \
    python interleave.py --units=out/data/talk,out/data/talk-more --eot --val_frac=0.05 --out=out/tokens/wide-talk$1 \
    "${@:2}"
}
wide_corpus() { # after wide_text: all parts of tiny/ -> out/data, out/tokens/wide and out/tokens/wide-talk
  step "corpus: units and words of all of tiny/" wide-corpus python -m tiny.unpack --parts=all
  wide_shards ""
}
corpus() { # tiny/ -> out/data, out/tokens/stories and out/tokens/talk
  step "corpus: units and words of tiny/" corpus python -m tiny.unpack
  once out/data/stories.txt step "corpus: more stories, as text" stories \
    python -m tiny.stories --n=60000 --out=out/data/stories.txt
  once out/tokens/stories/info.json step "units + words -> token shards: stories" tokens-stories \
    python interleave.py --units=out/data/stories --text=out/data/stories.txt --eot --val_frac=0.03 \
    --out=out/tokens/stories
  once out/tokens/talk/info.json step "units + words -> token shards: talk" tokens-talk \
    python interleave.py --units=out/data/talk --eot --val_frac=0.1 --out=out/tokens/talk
}
# share_runs PROCESSES COMMAND...: so many at once; '': one for each NVIDIA GPU or, without GPUs, for each core
share_runs() {
  local gpu=cpu gpus=0 pids=() i pid
  if nvidia-smi >/dev/null 2>&1; then
    gpu=H200
    gpus=$(nvidia-smi -L | wc -l)
  fi
  local processes=${1:-$((gpus ? gpus : $(nproc)))}
  trap 'kill "${pids[@]}" 2>/dev/null; wait; exit 130' INT TERM HUP
  for i in $(seq "$processes"); do
    OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=$((gpus ? (i - 1) % gpus : 0)) \
      "${@:2}" --gpu=$gpu >"$out/logs/runs-$i.log" 2>&1 &
    pids+=($!)
  done
  echo "the runs: $processes processes, $out/logs/runs-*.log"
  for pid in "${pids[@]}"; do
    wait "$pid" || {
      echo "FAILED  the runs; $out/logs/runs-*.log end with:"
      tail -qn 1 "$out"/logs/runs-*.log
      kill "${pids[@]}" 2>/dev/null
      wait
      exit 1
    }
  done
  trap - INT TERM HUP
}
