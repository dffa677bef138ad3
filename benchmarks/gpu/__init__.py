"""Our training beside its fastest peers on one GPU."""
