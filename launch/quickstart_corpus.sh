#!/usr/bin/env bash
# launch/quickstart_corpus.sh DIR: makes DIR/english.jsonl and DIR/chinese.jsonl, one {"text": ...} document a line.
#
# English: the GNU Collaborative International Dictionary of English (package dict-gcide), an entry per document.
# Chinese: translated manual pages (manpages-zh) and the LibreOffice help (libreoffice-help-zh-cn), a page per document.
# The packages are downloaded from the machine's own Debian or Ubuntu registry and unpacked here, never installed, so
# no root is needed. A file that is there already is not made again: that is also how an air-gapped site brings its own.
set -euo pipefail
export LC_ALL=C  # bytes in, bytes out: every awk and sort sees the same

readonly out=${1:?usage: launch/quickstart_corpus.sh DIR}
readonly packages=(dict-gcide manpages-zh libreoffice-help-zh-cn)

say() { printf 'corpus: %s\n' "$*" >&2; }

# apt-get with package lists of our own, for a machine whose lists are empty or unreadable to this user.
private_apt() {
  mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
  apt-get -q -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt" -o APT::Sandbox::User=root "$@"
}

fetch_packages() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "needs apt-get and dpkg-deb (Debian or Ubuntu); elsewhere put english.jsonl and chinese.jsonl into $out"
    return 1
  fi
  cd "$work"
  say "downloading ${packages[*]} (23 MB)"
  if ! apt-get -q -o APT::Sandbox::User=root download "${packages[@]}" >download.log 2>&1; then
    say "the package lists here do not help; fetching fresh ones into a private folder"
    if ! { private_apt update && private_apt download "${packages[@]}"; } >>download.log 2>&1; then
      tail -n 5 download.log >&2
      say "download failed; with no registry in reach, put english.jsonl and chinese.jsonl into $out"
      return 1
    fi
  fi
  local deb
  for deb in ./*.deb; do dpkg-deb -x "$deb" root; done
}

# The awk programs share these: text collects in `document` and leaves as one line with \001 for a line feed.
# (Escaping is left to sed: awks disagree about backslashes in the replacement text of gsub.)
readonly awk_library='
function add(line) { document = document (document == "" ? "" : "\001") line }
function flush_document() {
  gsub(/\001\001+/, "\001\001", document); sub(/^\001+/, "", document); sub(/\001+$/, "", document)
  if (length(document) >= 40) print document
  document = ""
}'
to_json_lines() { iconv -f UTF-8 -t UTF-8 -c | sed -e 's/\\/\\\\/g; s/"/\\"/g; s/\x01/\\n/g; s/.*/{"text": "&"}/'; }

# Valid UTF-8 without control characters other than the line feed; tabs become blanks.
clean_bytes() { iconv -f UTF-8 -t UTF-8 -c | tr '\t' ' ' | tr -d '\000-\011\013-\037\177'; }

# An entry starts with a headword in the first column and goes on indented. Wrapped lines are joined; pronunciations
# (\En"ter*prise\), source marks ([1913 Webster]) and cross-reference braces go.
english() {
  zcat root/usr/share/dictd/gcide.dict.dz | clean_bytes | awk "$awk_library"'
    function end_paragraph() { if (paragraph != "") add(paragraph); paragraph = "" }
    /^[^ ]/ { end_paragraph(); flush_document(); sub(/ *\\[^\\]*\\/, "") }
    { gsub(/\[[^][]*(Webster|WordNet|PJC|Century|AS|RP)[^][]*\]/, ""); gsub(/[{}]/, ""); blank = $0 ~ /^ *$/ }
    blank || /^ +([0-9]+\.|\([a-z]\)|Syn:|Note:|Usage:) / { end_paragraph() }
    !blank { sub(/^ +/, ""); sub(/ +$/, ""); paragraph = paragraph (paragraph == "" ? "" : " ") $0 }
    END { end_paragraph(); flush_document() }' | to_json_lines
}

# The text between the page frame and the search frame, without tags.
libreoffice_help() {
  find root/usr/share/libreoffice/help/zh-CN/text -name '*.html' -print0 | sort -z | xargs -0 cat | clean_bytes |
    awk "$awk_library"'
      /<!DOCTYPE/ { flush_document(); inside = 0 }
      /id="DisplayArea"/ { inside = 1 }
      /id="(relatedtopics|SearchFrame)"|class="relatedtopics"/ { inside = 0 }
      inside {
        sub(/^[^<]*itemtype="[^"]*">/, ""); gsub(/<[^>]*>/, "")
        gsub(/&lt;/, "<"); gsub(/&gt;/, ">"); gsub(/&quot;/, "\""); gsub(/&nbsp;/, " "); gsub(/&#39;/, "\x27"); gsub(/&amp;/, "\\&")
        gsub(/  +/, " "); sub(/^ +/, ""); sub(/ +$/, ""); add($0)
      }
      END { flush_document() }' | to_json_lines
}

# Manual pages: comments, requests and font changes go; the words of headings and of .B and .I lines stay.
manual_pages() {
  local page
  find root/usr/share/man/zh_CN -type f -name '*.gz' | sort | while read -r page; do
    zcat "$page"
    printf '\n.EndOfPage\n'
  done | clean_bytes | awk "$awk_library"'
    /^\.EndOfPage/ { flush_document(); next }
    /^[.'\'']\\"/ { next }
    { gsub(/\\f\[[A-Z]*\]|\\f\([A-Z][A-Z]|\\f[!-~]/, ""); gsub(/\\s[-+]?[0-9]/, ""); gsub(/\\[&,\/|^]/, ""); gsub(/\\-/, "-")
      gsub(/\\\((em|en|mi|hy)/, "-"); gsub(/\\\([!-~][!-~]|\\\*\([!-~][!-~]|\\\*[!-~]/, ""); gsub(/\\e/, "\\"); gsub(/\\ /, " ") }
    /^\.(SH|SS|TH)/ { sub(/^\.[A-Z]+ */, ""); gsub(/"/, ""); add(""); add($0); next }
    /^\.(B|I|BR|IR|BI|RB|RI|IB|IP|SM) / { sub(/^\.[A-Z]+ */, ""); gsub(/"/, ""); add($0); next }
    /^[.'\'']/ { next }
    { add($0) }
    END { flush_document() }' | to_json_lines
}

make_file() {  # make_file NAME FUNCTION...: whole or not at all
  local name=$1 part
  shift
  for part in "$@"; do "$part"; done >"$name.part"
  [ -s "$name.part" ] || { say "$name came out empty: the packages have changed"; return 1; }
  mv "$name.part" "$out/$name"
  say "$name: $(wc -l <"$out/$name") documents, $(($(stat -c %s "$out/$name") / 1000000)) MB"
}

mkdir -p "$out"
if [ -s "$out/english.jsonl" ] && [ -s "$out/chinese.jsonl" ]; then
  say "found in $out"
  exit 0
fi
work=$(mktemp -d "$out/work.XXXXXX")
trap 'cd /; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
fetch_packages
cd "$work"
make_file english.jsonl english
make_file chinese.jsonl libreoffice_help manual_pages
