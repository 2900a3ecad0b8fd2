"""Watch a network run on one image, and find out whether torch.export can see everything that it does.

torch.export records the operators of one run. Python code that reads a value of the image (``if float(x[0]) > 0.5``,
numpy, ``.data``) is not among them: the graph keeps the branch of one image, and is another function than the network.
The run here is on real tensors. It follows every tensor that depends on the image by its storage, so a value that is
read from a constant (``if (std == 0).any()``) is distinguished from one that is read from the image.
"""

import faulthandler
import gc
import linecache
import random
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from verifiers.core.errors import Unsupported, one_line
from verifiers.runtime.dispatch import DispatchMode
from verifiers.runtime.oom import pass_on_memory

#: Methods that hand out values without an operator that torch would see.
READS = frozenset(
    "numpy __array__ __dlpack__ data_ptr storage untyped_storage _typed_storage __deepcopy__ __reduce_ex__ "
    "__reduce__ __repr__ __str__ __format__ apply_ map_ map2_ share_memory_".split()
)
#: Methods that turn a tensor of one entry into a number of Python.
NUMBERS = frozenset("__bool__ __int__ __float__ __index__ __complex__ item is_nonzero tolist".split())
#: Attributes that hand out a tensor whose history torch.export loses.
ATTRIBUTES = frozenset({"data", "__cuda_array_interface__"})
#: Code that is not the network's: the standard library, torch, this package, checks of types, and generated code.
_STANDARD = sysconfig.get_path("stdlib")
_OTHERS = (
    *(str(Path(str(package.__file__)).parent) for package in (torch, jaxtyping)),
    str(Path(__file__).parent),
    "<eval_with_key>",
    "<@beartype",
    "<frozen",
)


@dataclass
class Watched:
    """Hold the findings of one run.

    Attributes:
        hidden: what torch.export cannot see, with the line of the network's code; None if there is nothing.
        constants: the numbers that Python code read from tensors that do not depend on the image, in order, each with
            the method that read it.
        single: whether Python code read a number from the image, which a batch of several does not have.
    """

    hidden: str | None = None
    single: bool = False
    constants: list[tuple[str, Any]] = field(default_factory=list)

    def hide(self, reason: str, frame: FrameType | None) -> None:
        """Keep the first reason."""
        self.hidden = self.hidden or f"{reason}{place(frame)}"


def watch(model: nn.Module, x: Tensor) -> Watched:
    """Run a network on one image and report what its Python code reads.

    The run is in the mode in which networks are deployed: eval, without gradients.
    """
    found, images = Watched(), x.detach().clone()
    functions, operators = _Functions(found), _Operators(found)
    operators.follow(images)
    functions.depends = operators.depends
    before = _generators()
    with torch.no_grad(), answers_of_deployment(), _questions(found), functions, operators:
        model(images)
    if before != _generators():
        found.hide("the network draws random numbers", None)
    return found


def _generators() -> tuple[Any, ...]:
    """Return the states of the random number generators that everybody shares."""
    numpy = np.random.get_state(legacy=False)
    return repr(numpy), torch.get_rng_state().numpy().tobytes()


class _Functions(TorchFunctionMode):
    """See the functions of torch that Python code calls, also those without an operator."""

    def __init__(self, found: Watched) -> None:
        super().__init__()
        self.found = found
        self.depends: Callable[[Any], bool] = lambda given: False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = _name(func), (args, kwargs or {})
        if (name in READS or name in ATTRIBUTES) and self.depends(given):
            word = f".{name}" if name in ATTRIBUTES else f"{name}()"
            self.found.hide(f"its code takes values of the image out of torch ({word})", _caller())
        result = func(*args, **(kwargs or {}))
        if name in NUMBERS:
            if self.depends(given):
                self.found.hide("its code reads values of the image in Python", _caller())
                self.found.single = True
            else:
                self.found.constants.append((name, result))
        return result


class _Operators(DispatchMode):
    """Follow the image through all operators, by the storage of their results."""

    def __init__(self, found: Watched) -> None:
        super().__init__()
        self.found = found
        self._storages: dict[int, Any] = {}  # kept alive, so that no address is used twice

    def follow(self, tensor: Tensor) -> None:
        """Mark a tensor as dependent on the image."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def depends(self, given: Any) -> bool:
        """Return whether a tensor among the arguments depends on the image."""
        with torch._C.DisableTorchFunction():
            tensors = (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
            return any(tensor.untyped_storage()._cdata in self._storages for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        depends, seeded = self.depends(given), torch.Tag.nondeterministic_seeded in func.tags
        before = torch.get_rng_state() if seeded else None
        result = func(*args, **(kwargs or {}))
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            self.found.hide(f"operator {str(func.name()).removeprefix('aten::')!r} draws random numbers", _caller())
        if not depends:
            return result
        if torch.Tag.data_dependent_output in func.tags:
            self.found.hide("its code reads values of the image in Python", _caller())
        elif torch.Tag.dynamic_output_shape in func.tags and not _fixed_shape(func, args):
            self.found.hide("the shape of a tensor depends on values of the image", _caller())
        changed = given if func._schema.is_mutable else ()
        for leaf in tree_leaves((result, changed)):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result


def _fixed_shape(func: Any, args: Any) -> bool:
    """Return whether an index has no mask, so that the shape of the result is known."""
    if "index" not in str(func.name()) or len(args) < 2:
        return False
    indices = (leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor))
    return not any(index.dtype in (torch.bool, torch.uint8) for index in indices)


class Replay(TorchFunctionMode):
    """Answer with the numbers that were read from constants in an earlier run, during torch.export.

    torch.export has no values, and refuses ``if (std == 0).any()`` although the answer is a constant of the network.
    """

    def __init__(self, constants: list[tuple[str, Any]]) -> None:
        super().__init__()
        self._left = list(constants)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._left and _name(func) == self._left[0][0]:
            return self._left.pop(0)[1]
        return func(*args, **(kwargs or {}))


# Questions about the mode in which the code runs


def _asked(*names: str) -> list[Any]:
    found = []
    for name in names:
        value: Any = torch
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            found.append(value)
    return found


#: Functions whose answers differ between deployment and capture, or from one run to the next.
_COMPILER = {
    name: getattr(torch.compiler, name) for name in ("is_exporting", "is_compiling") if hasattr(torch.compiler, name)
}
_MODES = (
    *("is_grad_enabled", "is_inference_mode_enabled", "onnx.is_in_onnx_export", "_utils.is_compiling"),
    *("are_deterministic_algorithms_enabled", "get_deterministic_debug_mode", "is_deterministic_algorithms_warn_only"),
    *("overrides._get_current_function_mode", "overrides._get_current_function_mode_stack"),
)
#: Beginnings of the names of functions of ``torch._C`` that tell about modes, and files of torch that do nothing else.
_TELL = ("_get_", "_len_", "_is_", "_dispatch_")
_TELLING = tuple(
    str(Path(str(torch.__file__)).parent / name)
    for name in ("utils/_python_dispatch.py", "_guards.py", "fx/experimental/proxy_tensor.py", "_subclasses")
)
#: Python's audit events of functions that show the callers of other threads: they see calls from C too.
_THREADS = ("sys._current_frames", "sys._current_exceptions", "gc.get_objects", "gc.get_referrers")


@contextmanager
def answers_of_deployment() -> Iterator[None]:
    """Let ``torch.compiler.is_exporting`` and ``is_compiling`` say no to everything but torch itself."""

    try:
        for name, known in _COMPILER.items():
            setattr(torch.compiler, name, lambda known=known: known() if _of_torch(sys._getframe(1)) else False)
        yield
    finally:
        for name, known in _COMPILER.items():
            setattr(torch.compiler, name, known)


#: The generator behind the functions of ``random``.
_RANDOM = getattr(random.random, "__self__", None)


def _drawing(frame: FrameType) -> bool:
    """Return whether a function of the module ``random`` runs for the network's code."""
    return frame.f_code.co_filename == random.__file__ and frame.f_back is not None and not _of_torch(frame.f_back)


def _tells(given: Any) -> bool:
    """Return whether a function of torch's C code tells about the modes in which the code runs."""
    home = getattr(given, "__module__", None)
    return home == "torch._C._functorch" or (home == "torch._C" and given.__name__.startswith(_TELL))


def _asks(frame: FrameType, codes: set[Any]) -> bool:
    """Return whether a function of Python that begins tells about the modes in which the code runs."""
    return frame.f_code in codes or frame.f_code.co_filename.startswith(_TELLING)


@dataclass
class _Audited:
    """Notice that the network's code looks at other threads, while runs are watched.

    Attributes:
        watches: the runs, each with the threads that were there before it and are not the network's.
    """

    watches: list[tuple[Watched, frozenset[int]]] = field(default_factory=list)

    def __call__(self, event: str, _: Any) -> None:
        if event not in _THREADS or not self.watches or _of_torch(frame := sys._getframe(1)):
            return
        for found, others in tuple(self.watches):
            if threading.get_ident() not in others:
                found.hide(f"its code asks {event.partition('.')[2]}()", frame)


@cache
def _audited() -> _Audited:
    """Return the one hook of this process: Python has no way to remove one."""
    hook = _Audited()
    sys.addaudithook(hook)
    return hook


@contextmanager
def _questions(found: Watched) -> Iterator[None]:
    """Notice that the network's code asks how it runs, what time it is, or for a random number."""
    import time

    clock = [getattr(time, name) for name in ("time", "time_ns", "perf_counter", "monotonic", "process_time")]
    functions = _asked(*_MODES)
    builtin = {id(function) for function in (*functions, *clock, faulthandler.dump_traceback)}
    codes = {one.__code__ for one in (*functions, *_COMPILER.values()) if hasattr(one, "__code__")}

    def see(frame: FrameType, event: str, given: Any) -> None:
        if event == "c_call" and (id(given) in builtin or _tells(given)) and not _of_torch(frame):
            found.hide(f"its code asks {getattr(given, '__name__', given)}()", frame)
        elif event == "c_call" and getattr(given, "__self__", None) is _RANDOM and not _of_torch(frame):
            found.hide("the network draws random numbers", frame)
        elif event == "call" and _drawing(frame):
            found.hide("the network draws random numbers", frame.f_back)
        elif event == "call" and _asks(frame, codes) and frame.f_back is not None and not _of_torch(frame.f_back):
            found.hide(f"its code asks {frame.f_code.co_name}()", frame.f_back)

    before, others, collecting = sys.getprofile(), threading.getprofile(), gc.isenabled()
    watch = found, frozenset(sys._current_frames()) - {threading.get_ident()}
    _audited().watches.append(watch)
    gc.disable()  # its callbacks and finalizers are no code of the network
    sys.setprofile(see)
    threading.setprofile(see)  # also of threads that the network starts
    try:
        yield
    finally:
        _audited().watches[:] = [one for one in _audited().watches if one is not watch]
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # a profiler in C, as cProfile's, which Python cannot set again
            sys.setprofile(None)
            before.enable()
        threading.setprofile(others)
        if collecting:
            gc.enable()


# Places


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _of_torch(frame: FrameType) -> bool:
    return _torch_file(frame.f_code.co_filename)


def _torch_file(path: str) -> bool:
    return path.startswith(_OTHERS) or (path.startswith(_STANDARD) and "site-packages" not in path)


def _caller() -> FrameType | None:
    """Return the innermost frame outside this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


def place(frame: FrameType | None) -> str:
    """Name the innermost line outside torch, with its text: `` (model.py:12: return -x if x > 0 else x)``."""
    line = own_line(frame)
    return "" if line is None else line_at(line)


def own_line(frame: FrameType | None) -> tuple[str, int] | None:
    """Return the file and the number of the innermost line outside torch, from a frame on."""
    while frame is not None and _of_torch(frame):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def blame(error: BaseException) -> str:
    """Name the innermost line outside torch in an error's traceback; empty if there is none."""
    trace: TracebackType | None = error.__traceback__
    found = ""
    while trace is not None:
        if not _of_torch(trace.tb_frame):
            found = line_at((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def line_of(trace: str | None) -> str:
    """Name the innermost line outside torch in the text of a stack trace; empty if there is none."""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace or "")
    own = [(path, int(number)) for path, number in places if not _torch_file(path)]
    return line_at(own[-1]) if own else ""


@contextmanager
def blamed(failure: str) -> Iterator[None]:
    """Run the network's own code; its errors, but for those of memory, become ``Unsupported`` with its line."""
    try:
        yield
    except Exception as error:
        pass_on_memory(error)
        raise Unsupported(f"{failure}{blame(error)}: {type(error).__name__}: {one_line(error)}") from error


def line_at(line: tuple[str, int]) -> str:
    """Name a line of a file, with its text."""
    path, number = line
    text = linecache.getline(path, number).strip()
    shown = f": {one_line(ValueError(text), 100)}" if text else ""
    return f" ({Path(path).name}:{number}{shown})"
