"""How long a test waits before it says that something hangs: many times what it takes, also on a busy machine."""

HANGS = 900.0  # seconds
