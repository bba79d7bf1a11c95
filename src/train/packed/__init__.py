"""Engine ``packed``: K runs train together over one frozen base, each exactly as it would alone."""
