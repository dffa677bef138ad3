"""finetune: one recipe file becomes a tuned, evaluated, logged model, on one process or a thousand."""

__version__ = "0.1.0"
