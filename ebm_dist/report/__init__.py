"""What people look at: figures, the table of results, the page of a run."""
