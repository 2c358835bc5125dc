#!/usr/bin/env bash
# launch/quickstart.sh [--set section.key=value ...]: from a fresh machine to a trained, evaluated, exported model.
#
# Builds Hearth where needed, fetches an English and Chinese corpus, trains a tokenizer, prepares shards, trains
# configs/quickstart.yaml with mpirun, scores held-out text, writes a few continuations, exports an HF directory.
# Ctrl-C during training saves and ends cleanly. A second run skips what is done and resumes what is not.
#
# Arguments go to `hearth train`. Environment:
#   HEARTH_CACHE               downloads, default ~/.cache/hearth
#   HEARTH_BINARY              a hearth that is built already; nothing is set up or built then
#   HEARTH_RANKS               default 2; 1 and 4 give the same losses
#   HEARTH_QUICKSTART_SECONDS  most seconds of training in one call, default 285; the next call continues
#   HEARTH_QUICKSTART_ROOT     where shards/ and runs/ go, default the repository
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
readonly root=${HEARTH_QUICKSTART_ROOT:-$repository}
readonly corpus=${HEARTH_CACHE:-$HOME/.cache/hearth}/corpus
readonly config=$repository/configs/quickstart.yaml
readonly shards=shards/quickstart run=runs/quickstart  # relative, as the config says them
readonly tokenizer=$shards/tokenizer
readonly num_ranks=${HEARTH_RANKS:-2}
# shellcheck source=launch/mpirun.sh
source "$repository/launch/mpirun.sh"

stage() { printf '\n== %s\n' "$*" >&2; }
say() { printf '   %s\n' "$*" >&2; }
json_number() {  # json_number FILE KEY, with four decimals
  printf '%.4f' "$(sed -n "s/.*\"$2\": *\(-\{0,1\}[0-9.eE+-]*\).*/\1/p" "$1")"
}

find_hearth() {
  stage "1/8 program"
  if [ -n "${HEARTH_BINARY:-}" ]; then
    hearth=$(realpath "$HEARTH_BINARY")
  else
    "$repository/launch/build.sh"
    hearth=$repository/build/hearth
  fi
  [ -x "$hearth" ] || { say "no program at $hearth"; exit 1; }
  say "$("$hearth" --version)"
}

make_corpus() {
  stage "2/8 corpus"
  "$repository/launch/quickstart_corpus.sh" "$corpus"
}

train_tokenizer() {
  stage "3/8 tokenizer: byte-level BPE of 4096 entries"
  if [ -s "$tokenizer/tokenizer.json" ]; then say "found in $tokenizer"; return; fi
  "$hearth" data train-tokenizer "$corpus/english.jsonl" "$corpus/chinese.jsonl" --vocab-size 4096 --output "$tokenizer"
}

prepare_shards() {
  stage "4/8 shards: 1% of the documents are held out"
  if [ -s "$shards/train/dataset.json" ] && [ -s "$shards/validation/dataset.json" ]; then say "found in $shards"; return; fi
  "$hearth" data prepare "$corpus/english.jsonl" "$corpus/chinese.jsonl" --tokenizer "$tokenizer" --output "$shards" \
    --validation-fraction 0.01 --seed 1234
}

# Ends the training politely when its time is up: run_ranks turns USR1 into a save at the next step boundary.
start_timer() {
  local script=$$
  (
    sleep "${HEARTH_QUICKSTART_SECONDS:-285}" &
    trap 'kill $! 2>/dev/null; exit 0' TERM
    wait $! && kill -USR1 "$script" 2>/dev/null
  ) &
  timer=$!
}

train() {
  stage "5/8 training on $num_ranks ranks; Ctrl-C saves, the next run resumes"
  local status=0 timer
  start_timer
  run_ranks "$num_ranks" "$hearth" train "$config" "$@" || status=$?
  trap : USR1  # a timer that fires right now must not end this script
  kill "$timer" 2>/dev/null || true
  wait "$timer" 2>/dev/null || true
  if [ "$status" = 75 ] && [ "$run_ranks_notices" = 0 ]; then
    say "time is up: this machine is slow. Going on with what was learned; run again to train to the end"
  elif [ "$status" = 75 ]; then
    say "saved in $root/$run/checkpoints; run launch/quickstart.sh again to continue"
    exit 75
  elif [ "$status" != 0 ]; then
    say "training ended with code $status; its log is in $root/$run/log"
    exit "$status"
  fi
}

newest_step() {
  local folder newest=
  for folder in "$run"/checkpoints/step_*/; do [ -d "$folder" ] && newest=$(basename "$folder"); done
  [ -n "$newest" ] || { say "no checkpoint in $root/$run/checkpoints"; exit 5; }
  echo "$newest"
}

evaluate() {
  stage "6/8 held-out text"
  local result=$run/held_out_$step.json
  if ! [ -s "$result" ]; then
    "$hearth" eval "$run" --data "$shards/validation" --json >"$result.part"
    mv "$result.part" "$result"
  fi
  loss=$(json_number "$result" loss)
  unigram=$(json_number "$result" unigram_loss)
  say "loss $loss nats per token, perplexity $(json_number "$result" perplexity)"
  say "loss $unigram for a unigram model of the same tokens"
}

samples() {
  stage "7/8 continuations"
  local result=$run/continuations_$step.txt prompt
  if ! [ -s "$result" ]; then
    for prompt in 'Enterprise, n.' 'Green, a.' 'A machine' $'\xe9\x80\x89\xe6\x8b\xa9' $'\xe6\xad\xa4\xe5\x87\xbd\xe6\x95\xb0'; do
      printf '> %s' "$prompt"
      "$hearth" generate "$run" --prompt "$prompt" --max-new-tokens 48 --temperature 0.7 --top-p 0.9 --seed 1
    done >"$result.part"
    mv "$result.part" "$result"
  fi
  cat "$result"
}

export_model() {
  stage "8/8 export"
  if ! [ -e "$run/exported_$step" ]; then
    rm -rf "$run/export"
    "$hearth" export "$run" --output "$run/export"
    rm -f "$run"/exported_*
    touch "$run/exported_$step"
  fi
  say "Hugging Face directory, loads in transformers, vLLM, llama.cpp: $root/$run/export"
}

summary() {
  cat >&2 <<END

== done in $SECONDS s
   held-out loss $loss against $unigram for unigrams (nats per token), after ${step#step_} steps
   corpus         $corpus
   shards         $root/$shards    (hearth data inspect $shards/train)
   run            $root/$run    (metrics.jsonl, checkpoints/, log/)
   model          $root/$run/export
   Next: change configs/quickstart.yaml, or try
     $hearth generate $run --prompt 'Forest, n.' --max-new-tokens 60 --temperature 0.8
END
}

find_hearth
mkdir -p "$root"
cd "$root"
make_corpus
train_tokenizer
prepare_shards
train "$@"
step=$(newest_step)
evaluate
samples
export_model
summary
if ! awk -v loss="$loss" -v unigram="$unigram" 'BEGIN { exit !(loss + 0 > 0 && loss < unigram) }'; then
  say "the model is no better than unigrams: it has hardly trained"
  exit 6
fi
