"""`python -m finetune`, so that `accelerate launch -m finetune train RECIPE` is as good as `finetune train RECIPE`."""

from finetune.cli import main

if __name__ == "__main__":
    main()
