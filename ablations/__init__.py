"""Questions in, answers out: studies, their runs, the statistics and the report."""
