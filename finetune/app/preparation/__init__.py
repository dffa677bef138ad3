"""Preparation of data: a stage of its own, done once per machine, before any process group exists.

What a training or an evaluation needs of its data (task artifacts, encoded splits, facts for people) is made once and
published in the cache as `prepared/<key>`; ranks only map it. The key is made of what the recipe says, the identity of files
(size and times, not contents), versions of libraries, and our own source code, so that it is known in milliseconds and
without torch. Who prepares:

- `finetune train`, `evaluate` and `prepare`: a child of this process (child.py), if there is no such entry yet. Its memory
  is returned when it ends, and Ctrl-C ends it within a second. If there is an entry, nothing is started or imported.
- under another launcher (torchrun, accelerate, deepspeed, srun): local rank 0 of each machine, in its own process; the
  other ranks look for the entry every tenth of a second (waiting.py). No collective is involved, so preparation
  may take longer than any collective may.

Machines with disks of their own prepare for themselves; machines that share a cache prepare once (data/prepare/locks.py).
After the ranks have met, they compare what they found.

The parts (rows of files, tables, splits, encoded examples) are cache entries of their own, whose keys are made of contents:
files that were only moved or touched lead to a new `prepared` entry, but are not encoded again.
"""
