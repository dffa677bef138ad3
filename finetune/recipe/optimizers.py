"""The optimizers there are: one entry each. Schema, checks, memory, shards, checkpoints and verify read this registry.

An entry needs an update that is elementwise: what happens to one weight depends on its own gradient and its own state
alone. ZeRO hands an optimizer flat pieces of parameters, cut wherever ranks meet, so an update that looks at whole tensors
would give other numbers on another number of ranks. That is why there is no LAMB (norms of tensors), no Adafactor (row and
column sums of a matrix, and its root mean square) and no Muon (orthogonalizes whole matrices).

Its state must be tensors of the parameter's size and a step count: NAdam's product of momenta is neither. State in 8 bits is
bytes with one scale per block: blocks would begin where a rank's piece begins, so the rounding, and what a checkpoint says,
would depend on the number of ranks. It is for engines whose ranks hold whole parameters (`scales`), and refused elsewhere.

To add one: an `OptimizerSpec` in `OPTIMIZERS`, and a test. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.recipe.targets import load_target

KEYWORDS = {"betas": "betas", "epsilon": "eps", "momentum": "momentum"}  # of the recipe -> of an optimizer
FLOAT32_BYTES = 4
BLOCK = 256  # elements of 8-bit state that share a scale


@dataclass(frozen=True)
class OptimizerSpec:
    """What the application must know of an optimizer.

    factory: "module:attribute" or a callable; called with parameter groups, `lr`, `arguments` and `options`.
    arguments: keys of `training:` that it takes. options: keyword arguments that are always the same.
    state: names of its state tensors, each of the parameter's size. state_argument: the key of a parameter group that
    must not be zero for there to be state.
    step: where it counts steps: "" nowhere; "host" and "device": a tensor in each parameter's state, on the CPU or
    beside the parameter; "number": an int there; "group": an int in the parameter group.
    device: "any"; "cuda": runs on CUDA alone; "cpu state": its state is in main memory.
    decay: how weight_decay acts. same_update: the optimizer that makes the same update with torch's own kernels,
    but for the rounding of 8-bit state.
    offloaded: the optimizer that takes its place where DeepSpeed keeps the state in main memory.
    scales: names of float32 tensors that hold one number for each BLOCK elements of the state, which then has 8 bits; such an
    optimizer needs whole parameters, and a method `add_state(parameter)`. package: what it needs beyond ours; extra: of ours.
    extension: the C++ or CUDA library that DeepSpeed compiles for it, see distributed/prebuild.py.
    kernel: the function of models/update_kernels.py that makes its whole update of float32 masters in one pass; "": none does.
    """

    name: str
    factory: str | Callable[..., Any]
    description: str
    state: tuple[str, ...]
    step: Literal["", "host", "device", "number", "group"]
    decay: Literal["decoupled", "coupled L2"]
    arguments: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    device: Literal["any", "cuda", "cpu state"] = "any"
    state_argument: str = ""
    same_update: str = ""
    offloaded: str = ""
    extension: str = ""
    scales: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""
    kernel: str = ""

    @property
    def state_bytes(self) -> float:
        """Bytes of state per parameter, whatever the precision."""
        each = 1 + FLOAT32_BYTES / BLOCK if self.scales else FLOAT32_BYTES
        return each * len(self.state)

    @property
    def from_deepspeed(self) -> bool:
        """Whether DeepSpeed's kernels do the update."""
        return isinstance(self.factory, str) and self.factory.startswith("deepspeed.")

    def state_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the state tensors of the parameters in a group."""
        return () if self.state_argument and not group.get(self.state_argument) else self.state

    def make(self, groups: list[dict[str, Any]], training: Any) -> Any:
        """The optimizer over parameter groups. training: the recipe's section.

        Each group remembers this entry's name under "optimizer": `spec_of` finds it again inside any wrapper.
        """
        factory = load_target(self.factory) if isinstance(self.factory, str) else self.factory
        named = {KEYWORDS[key]: getattr(training, key) for key in self.arguments}
        marked = [{**group, "optimizer": self.name} for group in groups]
        return factory(marked, lr=training.learning_rate, **named, **self.options)


_MOMENTS, _ADAM = ("exp_avg", "exp_avg_sq"), ("betas", "epsilon")
# fused: one pass over memory instead of ten, which takes a quarter of the time, on CPUs too.
_SPECS = (
    OptimizerSpec(
        "adamw", "torch.optim:AdamW", "Adam with decoupled weight decay",
        state=_MOMENTS, step="device", decay="decoupled", arguments=_ADAM, options={"fused": True},
        offloaded="deepspeed_cpu_adam", kernel="adamw",
    ),
    OptimizerSpec(
        "adam", "torch.optim:Adam", "Adam",
        state=_MOMENTS, step="device", decay="coupled L2", arguments=_ADAM, options={"fused": True}, kernel="adam",
    ),
    OptimizerSpec(
        "radam", "torch.optim:RAdam", "rectified Adam, which needs less warmup",
        state=_MOMENTS, step="host", decay="decoupled", arguments=_ADAM, options={"decoupled_weight_decay": True},
    ),
    OptimizerSpec(
        "lion", "finetune.training.lion:Lion", "sign of an interpolated momentum; half of Adam's state",
        state=("exp_avg",), step="", decay="decoupled", arguments=("betas",), kernel="lion",
    ),
    OptimizerSpec(
        "sgd", "torch.optim:SGD", "stochastic gradient descent with momentum",
        state=("momentum_buffer",), step="", decay="coupled L2", arguments=("momentum",), state_argument="momentum",
        kernel="sgd",
    ),
    OptimizerSpec(
        "adamw_8bit", "finetune.training.adam_8bit:AdamW8bit",
        "adamw with moments in 8 bits (bitsandbytes): a quarter of the state, rounded; for deepspeed: none",
        state=("state1", "state2"), step="number", decay="decoupled", arguments=_ADAM, same_update="adamw",
        scales=("absmax1", "absmax2"), package="bitsandbytes", extra="quantized",
    ),
    OptimizerSpec(
        "deepspeed_adam", "deepspeed.ops.adam:FusedAdam", "adamw in DeepSpeed's CUDA kernel",
        state=_MOMENTS, step="group", decay="decoupled", arguments=_ADAM, options={"adam_w_mode": True},
        device="cuda", same_update="adamw", extension="fused_adam",
    ),
    OptimizerSpec(
        "deepspeed_cpu_adam", "deepspeed.ops.adam:DeepSpeedCPUAdam", "adamw on state in main memory",
        state=_MOMENTS, step="number", decay="decoupled", arguments=_ADAM, options={"adamw_mode": True},
        device="cpu state", same_update="adamw", extension="cpu_adam",
    ),
    OptimizerSpec(
        "deepspeed_lion", "deepspeed.ops.lion:FusedLion", "lion in DeepSpeed's CUDA kernel",
        state=("exp_avg",), step="group", decay="decoupled", arguments=("betas",), device="cuda", same_update="lion",
        extension="fused_lion",
    ),
)  # fmt: skip

OPTIMIZERS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _SPECS}


def spec_of(optimizer: Any) -> OptimizerSpec:
    """Of an optimizer that `OptimizerSpec.make` made."""
    return OPTIMIZERS[optimizer.param_groups[0]["optimizer"]]


def describe_choice() -> str:
    """The sentence under `training.optimizer`."""
    entries = "; ".join(f"{spec.name}: {spec.description}" for spec in OPTIMIZERS.values())
    return (
        f"{entries}. Optimizers that look at whole tensors (LAMB, Adafactor, Muon) are left out: ZeRO hands an optimizer "
        "flat pieces, and the numbers would depend on the number of ranks."
    )


def describe_decay() -> str:
    """The sentences under `training.weight_decay`."""
    names = {
        kind: ", ".join(spec.name for spec in OPTIMIZERS.values() if spec.decay == kind)
        for kind in ("decoupled", "coupled L2")
    }
    return (
        "Weight decay, never of biases and normalization weights. "
        f"Decoupled ({names['decoupled']}): each step subtracts learning rate x weight_decay x weight. "
        f"Coupled L2 ({names['coupled L2']}): weight_decay x weight is added to the gradient, before momentum and scaling."
    )
