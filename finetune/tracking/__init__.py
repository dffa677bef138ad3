"""The record of a run: its folder, the journal of metrics, W&B, the console, the model card, the report. Rank 0 only."""
