"""Read the pickles that ``torch.save`` writes, without running them.

The reader knows plain containers, numbers, text and tensors. What training scripts keep beside weights, such as an
``argparse.Namespace`` or numbers of numpy, is left empty. A pickle that names another class or function holds code and
is rejected. Tensors are only described here: their numbers are read later, when their sizes are known to be right.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import torch

from certkd.networks.described import DTYPES, INT8, Name, Odd, Storage, from_type, quantized, view

#: Most bytes of a pickle, and most operations in it: 25,000 tensors, in about five seconds.
BYTES, OPERATIONS = 1 << 24, 1_000_000


class Code(Exception):
    """A pickle calls a function or an object that is not plain; the message names it."""


def _ordered(*pairs: Any) -> dict[Any, Any]:
    """Build the ordered dictionary of a state dict: empty, or from pairs (Python 2)."""
    return {key: value for key, value in (pairs[0] if pairs else ()) if _check_key(key)}


def _check_key(key: Any) -> bool:
    if isinstance(key, str | None) or (isinstance(key, int) and abs(key) < 1 << 60):
        return True
    raise ValueError(f"a dictionary with a {type(key).__name__} for a key")


def _odd(kind: str) -> Callable[..., Odd]:
    return lambda *_: Odd(kind)


def _encode(text: Any, *_: Any) -> bytes:
    return str.encode(text, "latin1")


def _first(value: Any, *_: Any) -> Any:
    return value


def _empty(*_: Any) -> dict[Any, Any]:
    """Stand in for an object beside weights: its entries may be tensors, its attributes are ignored."""
    return {}


def _none(*_: Any) -> None:
    return None


#: The functions that plain values need, with what takes their place.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": view,
    "torch._utils._rebuild_tensor_v2": view,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor_v3": _odd("numbers of 8 bits or another special kind"),
    "torch._utils._rebuild_sparse_tensor": _odd("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _odd("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _odd("a nested tensor"),
    "torch._utils._rebuild_qtensor": quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("a tensor without values"),
    "torch._tensor._rebuild_from_type_v2": from_type,
    "torch.serialization._get_layout": _first,
    "torch.device": _first,
    "torch.Size": tuple,
    "_codecs.encode": _encode,
    "builtins.set": tuple,
    "__builtin__.set": tuple,
    **{f"{numpy}.multiarray._reconstruct": _odd("a numpy array") for numpy in ("numpy.core", "numpy._core")},
    **{f"{numpy}.multiarray.scalar": _none for numpy in ("numpy.core", "numpy._core")},
    "numpy.dtype": _empty,
    **dict.fromkeys(
        (
            "argparse.Namespace",
            "types.SimpleNamespace",
            "pathlib.Path",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "collections.Counter",
            "collections.defaultdict",
            "datetime.datetime",
            "datetime.timedelta",
            "easydict.EasyDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "yacs.config.CfgNode",
        ),
        _empty,
    ),
}
#: What is named beside them and never called.
_NAMED = (
    INT8,
    "torch._utils._rebuild_wrapper_subclass",
    "numpy.ndarray",
    *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("int", "list")),
)
#: Prefixes of constants and storages, which are values and not called.
VALUES = ("torch.", "torch.cuda.", "torch.storage.")

_LITERALS = frozenset(
    "BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING STRING".split()
)
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_GETS, _PUTS = frozenset(("GET", "BINGET", "LONG_BINGET")), frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_MARK = object()


class Unpickler:
    """A machine that builds plain values; ``storages`` are those of its tensors, by their keys."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._cost = 0

    def load(self, stream: io.BytesIO) -> Any:
        """Read one value; the stream stops behind it.

        Raises:
            Code: the pickle holds code.
            ValueError, LookupError, TypeError, AttributeError: it is damaged.
        """
        self._stack, self._memo = [], {}
        for operation, argument, _ in pickletools.genops(stream):
            self._spend(1)
            if operation.name == "STOP":
                return self._stack.pop()
            self._step(operation.name, argument)
        raise ValueError("a pickle without an end")

    def _spend(self, cost: int) -> None:
        self._cost += cost
        if self._cost > OPERATIONS:
            raise ValueError(f"its pickle needs more than {OPERATIONS} operations")

    def _step(self, kind: str, argument: Any) -> None:
        stack = self._stack
        if kind in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 80:
                raise ValueError("a number of more than 80 bits")
            stack.append(argument)
        elif kind in _CONSTANTS:
            stack.append(_CONSTANTS[kind])
        elif kind in _EMPTY:
            stack.append(_EMPTY[kind]())
        elif kind == "MARK":
            stack.append(_MARK)
        elif kind in _GETS:
            stack.append(self._memo[argument])
        elif kind in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif kind not in ("PROTO", "FRAME"):
            action = getattr(self, f"_{kind.lower()}", None)
            if action is None:
                raise Code(kind)
            action(argument)

    def _marked(self) -> list[Any]:
        """Take the values above the last mark."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a pickle without a mark")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("a pickle that takes more than it has")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._marked()))

    def _tuple1(self, _: Any) -> None:
        self._stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self._stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self._stack.append(tuple(self._take(3)))

    def _list(self, _: Any) -> None:
        self._stack.append(self._marked())

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _additems(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("a pickle that appends to something else than a list")
        self._stack[-1].extend(values)

    def _dict(self, _: Any) -> None:
        values = self._marked()
        self._stack.append({})
        self._update(values)

    def _setitem(self, _: Any) -> None:
        self._update(self._take(2))

    def _setitems(self, _: Any) -> None:
        self._update(self._marked())

    def _update(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("a pickle that fills something else than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _check_key(key)
            self._stack[-1][key] = value

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        self._name(*self._take(2))

    def _name(self, module: Any, attribute: Any) -> None:
        text = f"{module}.{attribute}"
        value = f"{module}." in VALUES and _is_value(str(attribute))
        if not (value or text in FUNCTIONS or text in _NAMED):
            raise Code(text)
        self._stack.append(Name(text))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Name) or function.text not in FUNCTIONS or not isinstance(arguments, tuple):
            raise Code(function.text if isinstance(function, Name) else type(function).__name__)
        self._spend(sum(len(one) for one in arguments if isinstance(one, str | list | tuple | dict)))
        self._stack.append(FUNCTIONS[function.text](*arguments))

    def _newobj(self, _: Any) -> None:
        function = self._stack[-2] if len(self._stack) > 1 else None
        if not isinstance(function, Name) or FUNCTIONS.get(function.text) is not _empty:
            raise Code(function.text if isinstance(function, Name) else "NEWOBJ")
        self._reduce(None)

    def _build(self, _: Any) -> None:
        """Ignore the attributes of a state dict, of an object beside weights, or of an array."""
        self._take(1)
        if not isinstance(self._stack[-1], dict | Odd):
            raise Code("BUILD")

    def _binpersid(self, _: Any) -> None:
        (given,) = self._take(1)
        if not isinstance(given, tuple) or len(given) not in (5, 6) or given[0] != "storage":
            raise Code(str(given[0])[:40] if isinstance(given, tuple) and given else "a persistent object")
        kind, key, _, entries = given[1:5]
        right = isinstance(kind, Name) and isinstance(key, str) and type(entries) is int and 0 <= entries < 1 << 50
        if not right or (len(given) == 6 and given[5] is not None):
            raise ValueError("a storage without a size")
        storage = Storage(key, DTYPES.get(kind.text.rpartition(".")[2]), entries)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("a storage of two sizes")
        self._stack.append(storage)


def _is_value(name: str) -> bool:
    """Tell whether a name in torch is a storage or a constant, which does nothing."""
    return (name.endswith("Storage") and name.isalnum()) or isinstance(
        getattr(torch, name, None), torch.dtype | torch.qscheme | torch.layout
    )
