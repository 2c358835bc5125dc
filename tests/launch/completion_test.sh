#!/usr/bin/env bash
# Completion offers every verb of --help, every flag of a verb, and nothing else.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
hearth=${HEARTH_BINARY:?HEARTH_BINARY names the program}
# shellcheck source=launch/completion.bash
source "$here/../../launch/completion.bash"

reply() {  # words... -> $offered: the answers, sorted, on one line
  COMP_WORDS=("$hearth" "$@")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _hearth
  offered=$(printf '%s\n' "${COMPREPLY[@]}" | sort | tr '\n' ' ')
}
expect() {  # wanted words...
  local want=$1
  shift
  reply "$@"
  [ "$offered" = "$want " ] || { echo "hearth $* -> '$offered', expected '$want '" >&2; exit 1; }
}
has() {  # word words...
  local want=$1
  shift
  reply "$@"
  [[ " $offered" == *" $want "* ]] || { echo "hearth $* does not offer $want" >&2; exit 1; }
}
# Every verb is written once per line in --help; the count must agree, so none is lost in parsing.
listed=$("$hearth" --help | sed -n '/^Subcommands:/,/^$/p' | grep -c '^  [a-z]')
reply ''
[ "$(wc -w <<<"$offered")" = "$listed" ] || { echo "verbs: $offered, expected $listed" >&2; exit 1; }
expect doctor doc
expect train trai
has inspect data ''
expect prepare data prep
has --dry-run train --
expect --print-config train config.yaml --print
has --json doctor --
has --timeline plan --
expect '' data prepare some/file
echo "completion: right"
