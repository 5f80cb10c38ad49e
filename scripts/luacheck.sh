#!/usr/bin/env bash
# Runs luacheck on every script as Redis receives it: its preludes, then its own file. Both are read from the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
source=src/store/scripts
registry=src/store/scripts.rs
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# Prints the file names of a prelude, from a line such as `Prelude::Record => &[GATE, RECORD, TOKEN],`.
preludes() {
  grep -q "Prelude::$1 => &\[" "$registry" || { echo "no preludes of $1 in $registry" >&2; exit 1; }
  sed -n "s/^ *Prelude::$1 => &\[\(.*\)\],$/\1/p" "$registry" | tr -d ',' | tr '[:upper:]' '[:lower:]'
}

count=0
while read -r file prelude; do
  names=$(preludes "$prelude")
  for name in $names; do cat "$source/$name.lua"; done >"$directory/$prelude-$file"
  cat "$source/$file" >>"$directory/$prelude-$file"
  count=$((count + 1))
done < <(sed -n 's/^ *[A-Z_]* "[a-z-]*" in "\([a-z_]*\.lua\)" .* \([A-Z][A-Za-z]*\);$/\1 \2/p' "$registry" | sort -u)
[ "$count" -gt 0 ] || { echo "no script found in $registry" >&2; exit 1; }

# 211: a script does not use every function of its preludes.
luacheck --quiet --std lua51 --no-max-line-length --ignore 211 --read-globals redis KEYS ARGV struct cmsgpack cjson bit \
  -- "$directory"/*.lua
