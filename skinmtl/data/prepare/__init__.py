"""HAM10000 on the disk, checked: downloaded, or taken from what a user has. May import data.sources and below."""
