"""What is kept and told of a run: the folder, the journal of metrics, W&B, the terminal, the report. Rank 0 only."""
