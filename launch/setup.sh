#!/usr/bin/env bash
# launch/setup.sh [--tests] [--download]: everything that building Hearth needs, on Debian 12 and Ubuntu 24.04.
#
#   system packages   launch/system_packages.txt, by apt; with sudo where this is not root
#   LibTorch          the torch wheel and the libraries beside it (launch/requirements.txt, or requirements-cpu.txt where
#                     there is no CUDA toolkit) in a virtual environment under ${HEARTH_CACHE:-~/.cache/hearth}
#   --tests           tests/requirements.txt too
#   --download        also keeps the wheels in $HEARTH_CACHE/wheels: copy that folder to a machine without a registry,
#                     and setup.sh there installs from it
#
# Idempotent: a second run looks and ends within a second. Two runs at once wait for each other. Nothing is written
# outside the cache folder but by apt. A site's own PyPI mirror is taken from pip's configuration.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

with_tests=no download=no
for argument in "$@"; do
  case $argument in
    --tests) with_tests=yes ;;
    --download) download=yes ;;
    -h | --help) sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) die "unknown option '$argument'" "see launch/setup.sh --help" ;;
  esac
done

missing_system_packages() {
  sed '/^#/d' "$HEARTH_ROOT/launch/system_packages.txt" | sort >"$1/wanted"
  # shellcheck disable=SC2016,SC2046
  { dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' $(cat "$1/wanted") 2>/dev/null || true; } |
    awk '$1 == "ii" { print $2 }' | sort -u >"$1/present"
  comm -23 "$1/wanted" "$1/present"
}

install_system_packages() {
  local missing as_root=()
  if ! command -v dpkg-query >/dev/null; then
    say "setup: no dpkg here, so system packages are not looked at; needed are those of launch/system_packages.txt"
    return
  fi
  missing=$(missing_system_packages "$1" | tr '\n' ' ')
  [ -n "${missing// /}" ] || return 0
  say "setup: installing system packages: $missing"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "system packages are missing, and this is neither root nor is there sudo" \
      "ask an administrator for   apt-get install $missing"
    say "setup: not root, so apt-get runs with sudo"
    as_root=(sudo)
  fi
  # shellcheck disable=SC2086
  if ! { "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >&2; then
    die "apt-get could not install: $missing" "without a network, install these packages from your site's mirror and run this again"
  fi
}

make_environment() {
  if "$HEARTH_PYTHON" -c '' 2>/dev/null; then return; fi
  local python
  for python in python3.12 python3.11 python3; do
    command -v "$python" >/dev/null || continue
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
    say "setup: making $HEARTH_VENV with $($python --version)"
    "$python" -m venv --clear "$HEARTH_VENV"
    return
  done
  die "no Python 3.11 to 3.13 with the venv module was found" "apt-get install python3-venv"
}

# The pins that are not installed in exactly that version, one a line.
missing_pins() {
  "$HEARTH_PYTHON" - "$@" <<'PYTHON'
import importlib.metadata, sys
for path in sys.argv[1:]:
    for line in open(path):
        name, equals, version = line.split("#")[0].strip().partition("==")
        if not equals:
            continue
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found != version:
            print(f"{name}=={version}")
PYTHON
}

pip_install() {  # pins...
  local pip=("$HEARTH_PYTHON" -m pip --disable-pip-version-check --no-input) wheels=$HEARTH_CACHE/wheels
  if [ "$download" = yes ]; then
    "${pip[@]}" download --quiet --no-deps --dest "$wheels" "$@" >&2
  fi
  if [ -d "$wheels" ] && "${pip[@]}" install --quiet --no-deps --no-index --find-links "$wheels" "$@" 2>/dev/null >&2; then
    return
  fi
  "${pip[@]}" install --quiet --no-cache-dir --no-deps "$@" >&2
}

install_wheels() {  # requirement files...
  local stamp pins
  # The stamp is named by what is wanted, so a changed pin is a missing stamp.
  stamp=$HEARTH_VENV/.hearth-$(cat "$@" | sha256sum | cut -c1-16)
  if [ -e "$stamp" ] && [ "$download" = no ] && [ -x "$HEARTH_PYTHON" ]; then return; fi
  make_environment
  mapfile -t pins < <(missing_pins "$@")
  if [ "$download" = yes ]; then mapfile -t pins < <(grep -hv '^#' "$@"); fi
  if [ "${#pins[@]}" -gt 0 ]; then
    say "setup: installing ${#pins[@]} wheels into $HEARTH_VENV (some are large; minutes)"
    pip_install "${pins[@]}" || die "these wheels could not be installed: ${pins[*]}" \
      "without a network: run launch/setup.sh --download on a connected machine of the same kind and copy" \
      "its ${HEARTH_CACHE}/wheels here, or set HEARTH_CACHE to a folder that was prepared before"
  fi
  touch "$stamp"
}

main() {
  local scratch lists=("$HEARTH_ROOT/launch/requirements.txt")
  mkdir -p "$HEARTH_CACHE" || die "the cache folder cannot be made: $HEARTH_CACHE" "set HEARTH_CACHE to a folder of yours"
  exec 9>"$HEARTH_CACHE/setup.lock"
  flock -n 9 || { say "setup: another run is at work; waiting for it"; flock 9; }
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  install_system_packages "$scratch"
  [ "$(cuda_choice)" = ON ] || lists=("$HEARTH_ROOT/launch/requirements-cpu.txt")
  # PyTorch's Python side loads the CUDA libraries even where there is no GPU.
  if [ "$with_tests" = yes ]; then lists=("$HEARTH_ROOT/launch/requirements.txt" "$HEARTH_ROOT/tests/requirements.txt"); fi
  install_wheels "${lists[@]}"
  [ -n "$(find_torch)" ] || die "$HEARTH_VENV has no LibTorch although its wheels are installed" "remove that folder and run this again"
  say "setup: ready (cache $HEARTH_CACHE, CUDA $(cuda_choice))"
}
main
