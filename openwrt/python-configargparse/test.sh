#!/bin/sh
# Run on the target by the feed's CI after an installation: $1 package, $2 version.

[ "$1" = python3-configargparse ] || exit 0

python3 - "$2" <<'PYTHON'
import sys
from pathlib import Path

import configargparse

parser = configargparse.ArgParser()
parser.add_argument("--conn", env_var="KCPTUN_CONN", type=int)
assert parser.parse_args([], env_vars={"KCPTUN_CONN": "4"}).conn == 4
assert list(Path(configargparse.__file__).parent.glob(f"[Cc]onfig[Aa]rg[Pp]arse-{sys.argv[1]}.dist-info"))
PYTHON
