"""`python -m finetune`, so that `accelerate launch -m finetune train RECIPE` is as good as `finetune train RECIPE`."""

import signal

from finetune.ending import ended_by


def main() -> None:
    """The command line. Ctrl-C during its imports, too, is one word in place of a traceback."""
    with ended_by(signal.SIGINT):
        from finetune.cli import main as run
    run()


if __name__ == "__main__":
    main()
