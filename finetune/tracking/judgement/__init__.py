"""Whether a run is good: its figures with their uncertainty, beside what a model without training would reach."""
