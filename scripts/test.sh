#!/usr/bin/env bash
# Runs the tests of every language, one step after the other, and prints a table of their times. The arguments are the
# languages. Continues after a failure, so that one run reports everything, and fails at the end.
set -uo pipefail

table=
failed=0
step() {
  local name=$1 started=$SECONDS result=ok
  shift
  printf '\n==> %s\n' "$name"
  "$@" || { result=FAILED; failed=1; }
  table+=$(printf '| %-24s | %6s | %5d s |' "$name" "$result" $((SECONDS - started)))$'\n'
}

for program in cargo go python3 node npm java mvn; do
  command -v "$program" >/dev/null || { echo "$program is required for the tests of every language" >&2; exit 1; }
done

step "build" cargo build --workspace --all-targets
for language in "$@"; do
  step "build client $language" make -s -C "clients/$language" build
done
step "stubs are fresh" make -s gen-check
step "tests" cargo test --workspace --no-fail-fast

printf '\n| %-24s | %6s | %7s |\n|--------------------------|--------|---------|\n%s' step result time "$table"
printf '| %-24s | %6s | %5d s |\n' total "$([ "$failed" = 0 ] && echo ok || echo FAILED)" "$SECONDS"
exit "$failed"
