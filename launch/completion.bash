# Bash completion for hearth:   source launch/completion.bash
# Asks `hearth VERB --help` once per verb and shell, so it knows exactly what the program knows.
# shellcheck shell=bash
declare -gA _hearth_help=()

# Prints the words that `$1 verb...` takes: verbs below it when $2 is verbs, flags when it is flags.
_hearth_words() {
  local program=$1 kind=$2 key
  shift 2
  key="$program $*"
  if [ -z "${_hearth_help[$key]:-}" ]; then
    _hearth_help[$key]=$("$program" "$@" --help 2>/dev/null) || return 0
  fi
  if [ "$kind" = verbs ]; then
    sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\).*/\1/p' <<<"${_hearth_help[$key]}"
  else
    sed -n 's/^  \(-[-,a-zA-Z]*\).*/\1/p' <<<"${_hearth_help[$key]}" | tr ',' '\n'
  fi
}

_hearth() {
  local program=${COMP_WORDS[0]} current=${COMP_WORDS[COMP_CWORD]} verbs=() word known i
  program=${program/#\~/$HOME}
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    known=$(_hearth_words "$program" verbs "${verbs[@]}")
    if grep -qxF -- "$word" <<<"$known"; then verbs+=("$word"); fi
  done
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_hearth_words "$program" flags "${verbs[@]}")" -- "$current")
  else
    mapfile -t COMPREPLY < <(compgen -W "$(_hearth_words "$program" verbs "${verbs[@]}")" -- "$current")
  fi
}
# Paths where no verb or flag fits: most arguments are files and folders.
complete -o bashdefault -o default -F _hearth hearth
