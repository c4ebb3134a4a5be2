"""Arrays and tables in, pictures out. May import files, terminal, types, errors."""
