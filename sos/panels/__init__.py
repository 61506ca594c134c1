"""Tools for JupyterLab. Each is a plain class that holds the state, and thin widgets round it."""
