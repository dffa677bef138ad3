"""The GPU tests that a pretended device cannot pass, each with its reason; and those that `make test` runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cannot:
    """test: part of its id. runs: it is run, and has to fail; else it would take too long, or wait for ever."""

    test: str
    reason: str
    runs: bool = True

    def matches(self, nodeid: str) -> bool:
        return self.test in nodeid


_TRITON = "Triton's kernels do not run on a CPU build of torch, and their fallback is what other tests compare"
CANNOT = (
    Cannot(
        "test_loader.py::test_what_hides_behind_kernels_is_no_waiting",
        "no kernel runs behind the host: all is in order",
    ),
    Cannot("test_loss_head.py::test_gradients_of_the_forward_pass_equal_float64", _TRITON),
    Cannot("test_loss_head.py::test_kernels_equal_float64", _TRITON),
    Cannot("test_loss_head.py::test_a_factor_is_multiplied_in_float32", _TRITON),
    Cannot(
        "test_options.py::test_compiled_layers_have_the_losses_of_plain_ones", "torch.compile writes Triton for a GPU"
    ),
    Cannot(
        "test_options.py::test_memory_energy_and_the_share_of_the_peak_are_measured", "NVML counts no energy of a CPU"
    ),
    Cannot(
        "test_options.py::test_an_adapter_learns_on_a_quantized_base",
        "bitsandbytes' operators make tensors of the device by its name below the dispatch mode, where it is none",
    ),
    Cannot(
        "test_inference.py::test_slices_that_share_the_gpu_say_what_the_whole_model_says[replies]",
        "what a sliced embedding gives is a DTensor, whose parts lose their device here",
    ),
)
SELECTED = (  # what `make test` runs, about 90 CPU seconds
    "test_waits.py::",
    "test_machine.py::",
    "test_loader.py::test_batches_lie_in_memory_that_a_gpu_copies_from_alone",
    "test_pictures.py::test_bytes_become_the_values_of_the_table",
    "test_packed_attention.py::test_packed_logits_and_gradients_are_those_of_single_examples",
    "test_tasks.py::test_a_batch_on_cuda_is_the_batch_on_the_cpu",
    "test_stops.py::test_a_stopped_training_goes_on[none-bf16-0.01]",
    "test_inference.py::test_a_model_in_half_precision_answers[bf16-text_classification]",
    "test_inference.py::test_continuous_batching_writes_what_generate_writes[bf16]",
    "test_inference.py::test_a_server_and_python_say_the_same",
    "test_tasks.py::test_a_task_learns_in_bf16_and_engines_agree[object_detection]",
    "test_training.py::test_it_learns[data__packing-data__capacity-model__gradient_checkpointing]",
)
