#!/bin/sh
# Run on the target by the feed's CI after an installation: $1 package, $2 version.

[ "$1" = python3-cramjam ] || exit 0

python3 - "$2" <<'PYTHON'
import sys

import cramjam

data = b"kcptun" * 1000
assert bytes(cramjam.snappy.decompress(cramjam.snappy.compress(data))) == data
assert cramjam.__version__ == sys.argv[1]
PYTHON
