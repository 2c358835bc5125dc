# Bash completion for hearth:   source launch/completion.bash
# Asks `hearth VERB --help` once per verb and shell, so it knows exactly what the program knows.
# shellcheck shell=bash
declare -gA _hearth_help=()

# Makes sure that `$1 verb... --help` is known. Not in a subshell, or it would be asked again and again.
_hearth_ask() {
  local key="$*"
  if [ -z "${_hearth_help[$key]:-}" ]; then _hearth_help[$key]=$("$@" --help 2>/dev/null) || true; fi
}
_hearth_verbs() { sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z-]*\).*/\1/p' <<<"${_hearth_help[$*]:-}"; }
_hearth_flags() { sed -n 's/^  \(-[-,a-zA-Z]*\).*/\1/p' <<<"${_hearth_help[$*]:-}" | tr ',' '\n'; }

_hearth() {
  local command=("${COMP_WORDS[0]/#\~/$HOME}") current=${COMP_WORDS[COMP_CWORD]} i words
  _hearth_ask "${command[@]}"
  for ((i = 1; i < COMP_CWORD; i++)); do
    if grep -qxF -- "${COMP_WORDS[i]}" <<<"$(_hearth_verbs "${command[@]}")"; then
      command+=("${COMP_WORDS[i]}")
      _hearth_ask "${command[@]}"
    fi
  done
  if [[ $current == -* ]]; then words=$(_hearth_flags "${command[@]}"); else words=$(_hearth_verbs "${command[@]}"); fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
# Paths where no verb or flag fits: most arguments are files and folders.
complete -o bashdefault -o default -F _hearth hearth
