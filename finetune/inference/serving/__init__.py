"""`finetune serve`: a model behind HTTP. The front process parses, guards and queues; replicas hold the model.

    client -> protocol.py (timeouts) -> guard.py (host, origin, key, limits) -> app.py (endpoints)
           -> a Backend: Replica (in this process) or ReplicaPool (processes, each with a Replica)
           -> Batcher (chunks by cost) -> Answerer, or the generation engine

The front process imports neither torch nor transformers: replica.py, batcher.py and served_model.py do.
"""
