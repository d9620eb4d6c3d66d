#!/usr/bin/env bash
# Runs the regression tests beside it as PLUMED's own regtest/scripts/run does, outside PLUMED's tree.
#   CCG_PLUGIN=.../libccg_torch_model.so plumed_plugins/regtest/run.sh
# Exit status 1 where a file differs from its reference. The folders themselves also work inside PLUMED's tree, copied to
# regtest/ccg_torch_model/.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${CCG_PLUGIN:?set it to the shared library}" "${PLUMED:=plumed}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
for test in "$here"/rt-*/; do
  name=$(basename "$test")
  mkdir "$work/$name" && cp "$test"/* "$work/$name" && cd "$work/$name" || exit 1
  unset -f plumed_regtest_before
  source ./config
  if type -t plumed_regtest_before > /dev/null; then plumed_regtest_before; fi
  # shellcheck disable=SC2086 # the arguments are words
  "$PLUMED" --no-mpi "$type" $arg > out 2> err || { echo "$name: $type failed"; tail -20 err; failures=1; continue; }
  for reference in *.reference; do
    if diff "${reference%.reference}" "$reference"; then echo "$name: ${reference%.reference} agrees"; else failures=1; fi
  done
done
exit $failures
