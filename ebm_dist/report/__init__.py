"""Reports: figures, the table of results, the page of a run."""
