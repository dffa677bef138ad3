"""The far side of `ranks.py`: one process imports torch and DeepSpeed once, then forks ranks that serve calls.

Run as `python fork_server.py FD`, FD being a socket to the test session. A fork takes milliseconds, the imports seconds, so
a pool of ranks that had to be killed is cheap to replace. Ends with its parent.

`python fork_server.py FD REQUEST` forks nothing: it is one rank itself, for CUDA, FD being its connection.
"""

import ctypes
import faulthandler
import functools
import gc
import importlib
import importlib.util
import json
import os
import pickle
import random
import reprlib
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # prctl: the kernel sends this signal when the parent dies


def main() -> None:
    """Serve the session: {"environment", "log", "stacks"} and one descriptor forks a rank, {"arguments", ...} and one for
    its output the command line of finetune (warm_start.py), {"reap": pid} awaits either.
    """
    _die_with_parent()
    del sys.path[0]  # this file's folder, which Python put there: its neighbors are no top-level modules
    if len(sys.argv) > 2:
        _import_modules()  # while the test session collects its tests
        sys.exit(_be_a_rank(json.loads(sys.argv[2]), Connection(int(sys.argv[1]))))
    control = socket.socket(fileno=int(sys.argv[1]))
    _import_heavy()
    gc.freeze()  # what is loaded now stays: collections in the ranks need not walk it
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            return
        request = json.loads(message)
        if "reap" in request:
            control.send(json.dumps({"status": os.waitpid(request["reap"], 0)[1]}).encode())
            continue
        child = os.fork()
        if child == 0:
            control.close()
            if "arguments" in request:
                _be_finetune(request, descriptors[0])
            os._exit(_be_a_rank(request, Connection(descriptors[0])))
        os.close(descriptors[0])
        control.send(json.dumps({"pid": child}).encode())


def _import_heavy() -> None:
    """What ranks would import, and load, each for itself: seconds per rank.

    Nothing here starts a thread (datasets would): forking stays safe.
    """
    _import_modules()
    if sys.platform == "linux" and os.environ["DS_ACCELERATOR"] == "cpu":
        _load_extensions()
    cpuinfo = importlib.import_module("cpuinfo")  # which DeepSpeed's CPU Adam asks; it starts Python to find out
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
    cpuinfo.get_cpu_info()
    assert threading.active_count() == 1, threading.enumerate()


def _import_modules() -> None:
    for name in (
        "torch._dynamo",
        "transformers.integrations.deepspeed",
        "transformers.models.llama.modeling_llama",
        "accelerate",
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.runtime.engine",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "peft",
        "scipy.optimize",
        "sklearn.metrics",
        "pytest",
        "finetune.distributed.engines.ddp",
        "finetune.distributed.engines.deepspeed",
        "finetune.distributed.engines.pipeline",
        "finetune.cli",
        "finetune.app.workers.evaluate",
        "finetune.app.workers.predict",
        "finetune.app.workers.preparing",
        "finetune.app.workers.train",
        "finetune.tasks.image_classification.task",
        "finetune.tasks.object_detection.task",
        "finetune.tasks.text_classification.task",
        "finetune.tracking.report",
        "tests.warm_start",
    ):
        with suppress(ModuleNotFoundError):  # the oldest DeepSpeed that is admitted has fewer
            importlib.import_module(name)


def _load_extensions() -> None:
    """DeepSpeed's C++, compiled on a machine's first run: before any call's time is counted."""
    from finetune.distributed.prebuild import prebuild
    from finetune.errors import FinetuneError

    try:
        prebuild(print, cuda=False)
    except FinetuneError as error:  # no compiler, say: the tests that need one will fail with the reason
        print(error)


def _be_finetune(request: dict[str, Any], output: int) -> NoReturn:
    code = 1
    try:
        _die_with_parent()
        code = importlib.import_module("tests.warm_start").be_finetune(request, output)
    except BaseException:  # it must not become a second server
        traceback.print_exc()
    finally:
        os._exit(code)


def _be_a_rank(request: dict[str, Any], connection: Connection) -> int:
    """Answer calls until the session hangs up. Returns the exit code."""
    _die_with_parent()
    os.environ.update(request["environment"])
    with open(request["log"], "ab", buffering=0) as log:  # noqa: PTH123 (a bare descriptor is wanted)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    faulthandler.enable(all_threads=True)
    stacks = Path(request["stacks"]).open("w")  # noqa: SIM115 (open as long as the process lives)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    clean = _CleanState()
    while True:
        try:
            call = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return 0
        connection.send_bytes(_answer(call, clean))
        del call


def _answer(call: dict[str, Any], clean: "_CleanState") -> bytes:
    """Run one call; the pickled ("done", result), ("skipped", reason) or ("failed", text, exception or None)."""
    try:
        clean.restore()
        os.environ.update(call["environment"])
        if call["open_group"]:
            _open_group(Path(call["meeting"]))
        module = _load(call["module"], call["path"])
        function: Any = module
        for part in call["name"].split("."):
            function = getattr(function, part)
        args, kwargs = pickle.loads(call["arguments"])
        return pickle.dumps(("done", function(*args, **kwargs)))
    except BaseException as error:  # whatever it is, even SystemExit, belongs to the test, not to this loop
        if type(error).__name__ == "Skipped":
            return pickle.dumps(("skipped", str(error)))
        return pickle.dumps(("failed", _describe(error), _portable(error)))


def _open_group(meeting: Path) -> None:
    """Ranks meet in a file: a TCP store costs half a second, at times five, to no purpose."""
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(str(meeting), world_size)
    # The session's own timeout comes first; this one only ends what it could not reach.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=10))


def _load(name: str, path: str) -> ModuleType:
    """The module of the test's function: by name where that finds the same file, else from the file, under that name.

    Pytest's importlib mode gives test files names that no import statement would find.
    """
    if name in sys.modules:
        return sys.modules[name]
    try:
        module = importlib.import_module(name)
        if module.__file__ and Path(module.__file__).samefile(path):
            return module
    except ModuleNotFoundError as error:
        if not (name == error.name or name.startswith(f"{error.name}.")):
            raise
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module must not serve the next call
        raise
    return module


class _CleanState:
    """What a rank looked like before its first call; `restore` brings it back there, for whatever libraries keep."""

    def __init__(self) -> None:
        import torch
        from deepspeed.utils import groups
        from transformers.models.llama import modeling_llama

        self.linear = torch.nn.functional.linear
        self.llama, self.rotary = modeling_llama, modeling_llama.apply_rotary_pos_emb
        self.tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        self.environment = dict(os.environ)
        self.folder = Path.cwd()
        self.groups = {name: value for name, value in vars(groups).items() if not callable(value)}
        self.copies = {name: value.copy() for name, value in self.groups.items() if type(value) in (dict, list)}

    def restore(self) -> None:
        """All ranks have answered the former call when this runs, so nobody waits for a message of the old group."""
        import numpy
        import torch

        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        self._forget_accelerate()
        gc.collect()  # engines go before their groups
        self._close_groups()
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.tf32
        if torch.are_deterministic_algorithms_enabled():  # the setter imports a compiler: most of a second
            torch.use_deterministic_algorithms(False)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _forget_accelerate(self) -> None:
        from accelerate.state import AcceleratorState, GradientState
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()

    def _close_groups(self) -> None:
        import deepspeed.comm.comm as deepspeed_comm
        import torch
        import torch.distributed as dist
        from deepspeed.runtime.zero import partition_parameters
        from deepspeed.utils import groups

        if dist.is_initialized():
            dist.destroy_process_group()
        deepspeed_comm.cdb = None
        for name, value in self.groups.items():
            setattr(groups, name, self.copies[name].copy() if name in self.copies else value)
        if getattr(partition_parameters, "zero_init_context", 0):  # a test failed inside zero.Init
            partition_parameters.shutdown_init_context()
            partition_parameters.zero_init_context = 0
        torch.nn.functional.linear = self.linear  # ZeRO-3 puts its own there, for good
        self.llama.apply_rotary_pos_emb = self.rotary  # liger-kernel's stays for tensors on a GPU (models/kernels.py)


def _describe(error: BaseException) -> str:
    """The traceback from the test's function on, with the local values of the frame that failed."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    if isinstance(error, AssertionError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        lines.append("where\n")
        lines += [f"  {name} = {reprlib.repr(value)}\n" for name, value in frame.f_locals.items()]
    return "".join(lines)


def _portable(error: BaseException) -> BaseException | None:
    """The exception itself, if it can travel; None if not."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # any class may refuse in its own way; its traceback travels as text
        return None


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
