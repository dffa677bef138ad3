"""What a language model does around its output head, found out by asking it, without its weights.

A causal or sequence-to-sequence model of transformers is a body, a head behind it, and what happens to the logits after the
head: nothing, a scale (Granite, Cohere), a soft cap (Gemma 2), a bias (Marian). The probe runs the model's own forward pass
once, with a body that answers with zeros and a head that answers with known numbers: what comes out shows what happens to
them. It takes no table of architectures, and no weights, which ZeRO-3 may have sharded already.

Shapes: V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.linear_loss import LogitTransform

_LARGE = 2.0**17  # a soft cap's tanh is 1 there; a power of two, so that a scale comes out to the last bit
_SMALL = 2.0**-10


class Sealed(tuple[Any, ...]):
    """Values in the place of logits: what a model does to its logits leaves them as they are.

    A tuple, because hooks on modules look for tensors in tuples, and make a new one of the same class.
    """

    def _same(self, *_: Any, **__: Any) -> Sealed:
        return self

    __mul__ = __rmul__ = __truediv__ = __add__ = __radd__ = __sub__ = _same  # type: ignore[assignment]
    float = to = type = contiguous = clone = mul_ = div_ = tanh = _same

    @property
    def device(self) -> torch.device:
        device: torch.device = self[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self[0].dtype
        return dtype

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch.tanh(sealed) and the like."""
        return next(value for value in args if isinstance(value, Sealed))


def output_head(model: Any) -> nn.Module | None:
    """The module that makes logits of hidden states; None where the model does not name one."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


@contextmanager
def answering(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Within, `module` answers its calls with `answer`; its hooks run as ever."""
    own = vars(module).get("forward")
    module.forward = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def find_transform(model: Any) -> LogitTransform | str:
    """What `model` does to the output of its head; or why the head cannot be used apart from the model's forward pass."""
    head = output_head(model)
    if head is None:
        return "the model names no output head"
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    values = _probe_values(_head_sizes(head)[1])
    try:
        logits, hidden = _run(bare, head, values.reshape(1, 1, -1))
        sealed, _ = _run(bare, head, Sealed((values,)))
    except Exception as error:  # a model's own code may ask anything of its body
        return f"the model's forward pass is more than a body and a head ({type(error).__name__}: {error})"[:300]
    if not isinstance(sealed, Sealed) or sealed[0] is not values:
        return "the model's forward pass needs its logits"
    if hidden.shape[:-1] != (1, 1) or not torch.is_tensor(logits) or logits.numel() != values.numel():
        return "the model's head does not see each token once"
    return _identify(values, logits.detach().float().flatten())


def _identify(values: Tensor, found: Tensor) -> LogitTransform | str:
    """The scale and cap that make `found` of `values`."""
    largest, smallest = float(found[-1]), float(found[1])
    linear = LogitTransform(largest / _LARGE)
    if torch.allclose(found, linear(values), rtol=1e-6, atol=0.0):
        return linear
    scale = smallest / _SMALL
    capped = LogitTransform(1.0 if abs(scale - 1.0) < 1e-5 else scale, largest)
    if largest > 0 and torch.allclose(found, capped(values), rtol=1e-5, atol=1e-6):
        return capped
    return "the model changes its logits by something other than a scale or a soft cap"


def _probe_values(vocabulary: int) -> Tensor:
    values = torch.linspace(-40.0, 40.0, max(vocabulary, 4))
    values[0], values[1], values[-1] = 0.0, _SMALL, _LARGE
    return values


def _head_sizes(head: Any) -> tuple[int, int]:
    """(H, V)."""
    inputs, outputs = (getattr(head, name, None) for name in ("in_features", "out_features"))
    if not (inputs and outputs):  # wrapped by peft
        inner = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
        outputs, inputs = (inner.out_features, inner.in_features) if inner is not None else (4, 4)
    return int(inputs), int(outputs)


def _run(bare: Any, head: nn.Module, answer: Any) -> tuple[Any, Tensor]:
    """(logits of the model with a body of zeros and a head that answers with `answer`, what the head was given)."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Body(BaseModelOutputWithPast):
        """Has none of what a particular body adds to its outputs."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    given: list[Tensor] = []
    states = torch.zeros(1, 1, _head_sizes(head)[0])

    def take(hidden: Tensor) -> Any:
        given.append(hidden)
        return answer

    tokens = torch.zeros(1, 1, dtype=torch.int64)
    inputs = {"input_ids": tokens, "use_cache": False}
    if getattr(bare.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    with ExitStack() as stack, torch.no_grad():
        for body in _bodies(bare, head):
            stack.enter_context(answering(body, lambda *_, **__: Body(last_hidden_state=states)))
        stack.enter_context(answering(head, take))
        logits = bare.forward(**inputs).logits
    if len(given) != 1:
        raise ValueError(f"its head is called {len(given)} times")
    return logits, given[0]


def _bodies(bare: Any, head: nn.Module) -> list[nn.Module]:
    """The model's parts without the head; and decoders that some models call by themselves."""
    parts = [child for child in bare.children() if not any(module is head for module in child.modules())]
    inner = [getattr(part, name, None) for part in parts for name in ("decoder", "encoder")]
    return [*parts, *(module for module in inner if isinstance(module, nn.Module))]
