"""Training, runs on disk, metrics, tables and figures."""
