"""Tests. A package, so that test files can share `tests.ranks` and `tests.faults`."""
