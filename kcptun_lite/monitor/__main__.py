"""`python -m kcptun_lite.monitor ...`, which is how the web server starts a screen for each browser.

In      the process's arguments
Out     an exit code
Knows   nothing but where `main` is
"""

import sys

from kcptun_lite.monitor.cli import main

sys.exit(main())
