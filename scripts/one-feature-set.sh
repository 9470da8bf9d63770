#!/usr/bin/env bash
# Fails when `cargo test --workspace` would build a registry crate of the program with other features
# than `cargo run` does: README promises that after the first command the second recompiles none.
#
#   scripts/one-feature-set.sh
#
# A dev-dependency that turns a feature on is the usual cause: turn it on in [workspace.dependencies].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# tree SELECTION EDGES: "name version features" of every package from a registry, sorted.
tree() {
  # The selection is one flag or a flag with its value.
  # shellcheck disable=SC2086
  cargo tree --locked --prefix none --edges "$2" --format '{p} {f}' $1 |
    sed 's/ (\*)$//' | grep -v ' (/' | LC_ALL=C sort -u
}

run=$(tree "--package barista" normal,build)
test=$(tree "--workspace" normal,build,dev)
differing=$(LC_ALL=C comm -23 <(printf '%s\n' "$run") <(printf '%s\n' "$test"))
# The other direction: a crate of the program that the tests build a second time with more features.
more=$(LC_ALL=C comm -13 <(printf '%s\n' "$run") <(printf '%s\n' "$test") |
  awk 'NR == FNR { known[$1 " " $2] = 1; next } ($1 " " $2) in known' <(printf '%s\n' "$run") -)
if [ -n "$differing$more" ]; then
  printf 'features differ between cargo run and cargo test --workspace:\n%s\n%s\n' "$differing" "$more" >&2
  exit 1
fi
printf 'one feature set: %d registry crates in the program, %d with the tests\n' \
  "$(wc -l <<<"$run")" "$(wc -l <<<"$test")"
