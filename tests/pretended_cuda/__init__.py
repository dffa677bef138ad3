"""A CUDA device that is pretended on a CPU: what our code does on a GPU, executed where there is none.

A tensor "on cuda:0" is a tensor of the CPU whose storage carries a mark (marks.py). A dispatch mode (dispatch.py) passes
marks on from inputs to results, and refuses what CUDA refuses: mixtures of devices, and dtypes that its kernels do not take
(dtype_rules.py). What crosses between devices goes through crossings.py, and a copy that nobody waited for has not arrived
(streams.py). torch.cuda answers as an H100 does (runtime.py), with memory that is counted, and every wait for the device is
counted with its place (waits.py).

This proves placement, dtypes, use of the API and waits. It proves nothing about CUDA's kernels, their rounding, races between
streams, NCCL, or speed. `install.py` is the door; `pytest --pretend-cuda` (plugin.py) and child processes (site/) use it.
"""
