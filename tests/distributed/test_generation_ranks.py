"""Tests that ranks that share the rows of a file write the texts that one process writes, sampled ones too."""

from __future__ import annotations

from tests.ranks import Ranks
from tests.unit.inference.generation.models import artifacts, llama
from tests.unit.inference.generation.test_answerer import SHAPE, chunks, texts


def write_share(seed: int) -> dict[int, str]:
    """The texts of this rank's chunks."""
    import torch.distributed as dist

    from finetune.inference.generation.answerer import GenerationAnswerer
    from finetune.inference.generation.opening import open_generator
    from finetune.inference.generation.requests import GenerationSettings
    from finetune.tasks.causal_lm.task import TASK

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = llama()
    generator = open_generator(artifacts(), model)
    settings = GenerationSettings(new_tokens=16, temperature=1.0, top_p=0.9, seed=seed)
    try:
        answerer = GenerationAnswerer(TASK, artifacts(**SHAPE), model, generator, settings)
        return texts(list(answerer.run(chunks(24, 3)[rank::world])))
    finally:
        generator.close()


def test_sampled_texts_are_equal_on_one_and_two_ranks(ranks: Ranks) -> None:
    alone = write_share(7)
    shares = ranks.run(2, write_share, 7)
    assert [len(share) for share in shares] == [12, 12]
    assert shares[0] | shares[1] == alone
    assert len(set(alone.values())) > 12
