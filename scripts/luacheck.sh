#!/usr/bin/env bash
# Runs luacheck on every script as Redis receives it: with its includes.
set -euo pipefail
cd "$(dirname "$0")/.."
source=src/store/scripts
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# Prints a file; a line `-- include <name>` is replaced by lib/<name>.lua.
expand() {
  local line
  while IFS= read -r line; do
    if [[ $line =~ ^\ *--\ include\ ([a-z_]+)$ ]]; then
      expand "$source/lib/${BASH_REMATCH[1]}.lua"
    else
      printf '%s\n' "$line"
    fi
  done <"$1"
}

for script in "$source"/*.lua; do expand "$script" >"$directory/$(basename "$script")"; done

# A script need not use all that its includes set (211, 221, 231, 311, 321), and may give a parameter the name of a value (431).
luacheck --quiet --std lua51 --no-max-line-length --ignore 211 221 231 311 321 431 --read-globals redis KEYS ARGV struct bit \
  -- "$directory"/*.lua
