"""What `finetune` uses of its libraries beyond dotted names: methods of objects, attributes that are set on objects, and
names that are given as text. A syntax tree does not show whose they are, so they are listed by hand.
"""

# Methods, and class attributes: dotted name -> keywords passed to it.
METHODS: dict[str, set[str]] = {
    "accelerate.Accelerator.prepare": set(),
    "accelerate.Accelerator.unwrap_model": set(),
    "deepspeed.runtime.engine.DeepSpeedEngine.backward": set(),
    "deepspeed.runtime.engine.DeepSpeedEngine.get_global_grad_norm": set(),
    "deepspeed.runtime.engine.DeepSpeedEngine.set_gradient_accumulation_boundary": set(),
    "deepspeed.runtime.engine.DeepSpeedEngine.step": set(),
    "peft.tuners.lora.LoraModel.merge_and_unload": set(),
    "peft.PeftModel.save_pretrained": set(),
    "torch.nn.Module.register_forward_pre_hook": {"with_kwargs"},
    "torch.Tensor.index_add": set(),
    "torch.Tensor.untyped_storage": set(),
    "transformers.PreTrainedModel.set_attn_implementation": set(),
    "transformers.PreTrainedModel._supports_attention_backend": set(),
    "transformers.PreTrainedModel.activation_checkpointing_enable": set(),
    "transformers.PreTrainedModel.gradient_checkpointing_enable": set(),
    "transformers.PreTrainedModel.supports_gradient_checkpointing": set(),
    "transformers.PreTrainedModel._init_weights": set(),
    "transformers.PreTrainedModel.get_output_embeddings": set(),
    "transformers.PreTrainedModel.base_model_prefix": set(),
    "transformers.PreTrainedModel.resize_token_embeddings": {"mean_resizing"},
    "transformers.PreTrainedModel.save_pretrained": {"state_dict"},
    "transformers.generation.GenerationMixin.generate": set(),
    "transformers.PreTrainedTokenizerBase.apply_chat_template": {"add_generation_prompt", "tokenize"},
    "transformers.PreTrainedTokenizerBase.__call__": {"add_special_tokens", "return_offsets_mapping", "verbose"},
    "transformers.PreTrainedTokenizerBase.batch_decode": {"skip_special_tokens"},
    "transformers.PreTrainedConfig.base_model_tp_plan": set(),
}

# Attributes that a library sets on its objects: name -> the module of the library whose source names it.
ATTRIBUTES: dict[str, str] = {
    "_attn_implementation": "transformers.configuration_utils",
    "_ds_grad_allreduce_registered": "deepspeed.module_inject.auto_tp",
    "_hp_mapping": "deepspeed.utils.tensor_fragment",
    "cur_scale": "deepspeed.runtime.fp16.loss_scaler",
    "ds_id": "deepspeed.runtime.zero.partition_parameters",
    "ds_numel": "deepspeed.runtime.zero.partition_parameters",
    "ds_shape": "deepspeed.runtime.zero.partition_parameters",
    "ds_tensor": "deepspeed.runtime.zero.partition_parameters",
    "fp32_partitioned_groups_flat": "deepspeed.runtime.zero.stage3",
    "get_param_id": "deepspeed.runtime.zero.stage3",
    "grad_position": "deepspeed.runtime.zero.stage3",
    "hp_fragment_address": "deepspeed.utils.tensor_fragment",
    "kineto_results": "torch.autograd.profiler",
    "loss_scaler": "deepspeed.runtime.zero.stage_1_and_2",
    "lp_fragment_address": "deepspeed.utils.tensor_fragment",
    "param_group_index": "deepspeed.utils.tensor_fragment",
    "shutdown_init_context": "deepspeed.runtime.zero.partition_parameters",
    "single_partition_of_fp32_groups": "deepspeed.runtime.zero.stage_1_and_2",
    "sub_group_to_group_id": "deepspeed.runtime.zero.stage3",
    "zero_init_context": "deepspeed.runtime.zero.partition_parameters",
}

# Names that the oldest admitted version lacks: whoever uses one looks for it first, and does without or says so.
LOOKED_FOR = {
    "transformers.PreTrainedModel.activation_checkpointing_enable": "finetune/models/training_layers.py",
    "transformers.distributed.mixin.initialize_distributed_mesh": "finetune/distributed/replica_mesh.py",
    "transformers.distributed.utils.TransformersDeviceMesh": "finetune/distributed/replica_mesh.py",
}
