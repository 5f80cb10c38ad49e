#!/usr/bin/env bash
# Runs luacheck on every script as Redis receives it: the preludes of its kind, then its own file. The registry in
# src/store/scripts.rs names both.
set -euo pipefail
cd "$(dirname "$0")/.."
source=src/store/scripts
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

preludes() {
  case $1 in
    None) ;;
    Gate) echo gate ;;
    Record) echo gate record token ;;
    Mutation) echo gate record token mutation ;;
    *) echo "unknown prelude $1 in src/store/scripts.rs" >&2; exit 1 ;;
  esac
}

count=0
while read -r file prelude; do
  names=$(preludes "$prelude")
  for name in $names; do cat "$source/$name.lua"; done >"$directory/$prelude-$file"
  cat "$source/$file" >>"$directory/$prelude-$file"
  count=$((count + 1))
done < <(sed -n 's/^ *[A-Z_]* "[a-z-]*" in "\([a-z_]*\.lua\)" .* \([A-Z][A-Za-z]*\);$/\1 \2/p' src/store/scripts.rs | sort -u)
[ "$count" -gt 0 ] || { echo "no script found in src/store/scripts.rs" >&2; exit 1; }

# 211: a script does not use every function of its preludes.
luacheck --quiet --std lua51 --no-max-line-length --ignore 211 --read-globals redis KEYS ARGV struct cmsgpack cjson bit \
  -- "$directory"/*.lua
