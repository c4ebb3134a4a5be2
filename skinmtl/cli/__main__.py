"""`python -m skinmtl.cli`: the same as the command `skinmtl`."""

import sys

from skinmtl.cli.commands import main

sys.exit(main())
