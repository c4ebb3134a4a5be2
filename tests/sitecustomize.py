"""Python runs this at its start where tests/ is on PYTHONPATH: in every process that a test starts."""

import offline

offline.block()
