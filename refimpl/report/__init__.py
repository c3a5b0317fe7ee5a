"""Reports of runs: figures, tables, and one page that holds them; the only room that knows matplotlib."""
