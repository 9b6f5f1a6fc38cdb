"""One command behind each measured number in the README."""
