"""Text written by a language model: requests, the generators that answer them, and the Answerer made of one.

    prompt ids, GenerationSettings -> TextGenerator.submit -> Request -> pieces of text as they come, then a Reply or RowError

Two generators write the same tokens: `continuous.py` (transformers' continuous batching; the faster one) and `static.py`
(`generate` on batches sorted by length; takes everything). `opening.py` chooses, and says why.
"""
