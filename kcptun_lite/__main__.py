"""`python -m kcptun_lite client ...` and `python -m kcptun_lite server ...`.

In      the process's arguments
Out     one of the two programs
Knows   their names. Not: anything else
"""

import sys

from kcptun_lite.app import cli

PROGRAMS = {"client": cli.client, "server": cli.server}

if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
    print("usage: python -m kcptun_lite client|server [options]", file=sys.stderr)
    sys.exit(2)
PROGRAMS[sys.argv.pop(1)]()
