"""Reports of runs: figures, tables, and the page that holds them. Only this room imports matplotlib."""
