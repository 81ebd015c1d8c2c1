#!/usr/bin/env bash
# Sourced by speedrun.sh and papers/claims.sh, after setup.sh and with $out set: how they run their steps, and the steps
# that make token shards of the embedded corpus.
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
wide_corpus() { # after wide_text: all parts of tiny/ -> out/data, out/tokens/wide and out/tokens/wide-talk
  step "corpus: units and words of all of tiny/" wide-corpus python -m tiny.unpack --parts=all
  once out/tokens/wide/info.json step "units + words -> token shards: stories, voices, world" tokens-wide \
    python interleave.py --units=out/data/stories,out/data/stories-more,out/data/voices,out/data/world \
    --text=out/data/world.txt --eot --val_frac=0.01 --out=out/tokens/wide
  once out/tokens/wide-talk/info.json step "units + words -> token shards: all talk" tokens-wide-talk \
    python interleave.py --units=out/data/talk,out/data/talk-more --eot --val_frac=0.05 --out=out/tokens/wide-talk
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
