#!/usr/bin/env bash
# Runs luacheck on every script as Redis receives it: its preludes, then its own file. Both are read from the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
source=src/store/scripts
registry=src/store/scripts.rs
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# Prints the file names of a prelude, from a line such as
# `const RECORD: &[&str] = &[GATE[0], include_str!("scripts/record.lua")];`. GATE[0] is the first file of GATE.
files() {
  local list part
  list=$(sed -n "s/^const $1: &\[&str\] = &\[\(.*\)\];$/\1/p" "$registry" | tr -d ',')
  for part in $list; do
    case $part in
      *\[*\]) files "${part%%\[*}" | sed -n "$((${part//[!0-9]/} + 1))p" ;;
      *) part=${part#*scripts/} && echo "${part%%.lua*}.lua" ;;
    esac
  done
}

count=0
while read -r file prelude; do
  grep -q "^const $prelude: " "$registry" || { echo "no prelude $prelude in $registry" >&2; exit 1; }
  for name in $(files "$prelude"); do cat "$source/$name"; done >"$directory/$prelude-$file"
  cat "$source/$file" >>"$directory/$prelude-$file"
  count=$((count + 1))
done < <(sed -n 's/^ *[A-Z_]* "[a-z-]*" in "\([a-z_]*\.lua\)" .* \([A-Z][A-Z]*\);$/\1 \2/p' "$registry" | sort -u)
[ "$count" -gt 0 ] || { echo "no script found in $registry" >&2; exit 1; }

# 211: a script does not use every function of its preludes.
luacheck --quiet --std lua51 --no-max-line-length --ignore 211 --read-globals redis KEYS ARGV struct cmsgpack cjson bit \
  -- "$directory"/*.lua
