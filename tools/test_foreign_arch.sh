#!/bin/sh
# Runs tests/core on another processor: tools/test_foreign_arch.sh [s390x|armhf|i386|...] [pytest arguments]
# foreign_arch.sh says which there are, and what is needed. Slow: minutes, not seconds.

set -eu

cd "$(dirname "$0")/.."
arch="${1:-s390x}"
[ $# -eq 0 ] || shift
python="$(tools/foreign_arch.sh "$arch")"

"$python" -c 'import platform, struct, sys
print(platform.machine(), sys.byteorder, "endian,", 8 * struct.calcsize("P"), "bits, Python", platform.python_version())'
without=
"$python" -c 'import cramjam' 2>/dev/null || without="--ignore=tests/core/mux/test_snappy.py"
# shellcheck disable=SC2086 # one option or none
"$python" -m pytest -q -p no:cacheprovider tests/core $without "$@"
