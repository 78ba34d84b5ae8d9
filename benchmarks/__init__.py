"""Load on a nusku server over HTTP, with every answer verified: `python -m benchmarks`."""
