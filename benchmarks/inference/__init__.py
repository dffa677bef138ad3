"""Benchmarks of prediction and generation."""
