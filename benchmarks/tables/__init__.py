"""The documents' measured tables, written from the JSON that the commands left: ``python -m benchmarks.tables``."""
