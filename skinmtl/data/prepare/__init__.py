"""HAM10000 onto the disk, checked: downloaded or taken from what a user has, without anyone's metadata."""
