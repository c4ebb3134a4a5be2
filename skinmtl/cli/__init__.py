"""The command line: `python train.py`, `skinmtl ...`, exit codes. May import everything."""
