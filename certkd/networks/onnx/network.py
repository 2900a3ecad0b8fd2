"""Convert a classifier's ONNX file to an ordinary torch module.

Weights become parameters, so hashes, devices and dtypes work as for any module. Values that follow from shapes and
constants alone are computed by onnx's own reference implementation, which supports every operator at every opset. All
else becomes plain torch functions, which bound engines support. The module's logits are checked against onnxruntime's
before it is used.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.networks.cost import check_cost
from certkd.networks.onnx import quantized
from certkd.networks.onnx.call import Call, Value
from certkd.networks.onnx.codes import Lazy
from certkd.networks.onnx.file import DOMAINS, OnnxFile, packages, read
from certkd.networks.onnx.operators import OPERATORS
from certkd.networks.onnx.original import check_original
from certkd.networks.onnx.patterns import Operation, simplified
from certkd.networks.onnx.reference import Mixed, NoRows, OneByOne, Reference
from certkd.networks.onnx.sizes import SIZES
from certkd.networks.onnx.steps import FEW, LARGEST_NUMBERS, Known, Step, Weights, is_weight
from verifiers.core.errors import InputError, loading, one_line, quoted
from verifiers.graph.integers import computes_in_int8

#: Largest difference to onnxruntime's logits, relative to the largest of them (at least 1).
TOLERANCE = 1e-4
#: Operations for one image up to which a network is compared on six images, and not on two.
FEW_OPERATIONS = 10**9
#: Images on which an int8 network of few operations is compared: a difference between two codes may be rare.
CODED = 24
#: Most numbers of weights that a file fills with one number.
MADE = 1 << 26
#: Operators whose number of outputs means something, even if they are not used.
COUNTED = ("BatchNormalization", "Split")


class OnnxNetwork(nn.Module):
    """The network of an ONNX file, for batches of any size; see ``load``.

    Args:
        file: the file.
        literal: run it on exactly as many images as it takes, each image apart from the others.
        numbers: its output may follow from shapes alone; then it has ``values``, and no logits.
    """

    def __init__(self, file: OnnxFile, *, literal: bool = False, numbers: bool = False) -> None:
        super().__init__()
        self.image, self.logits, self.sha256 = file.image, file.logits, file.sha256
        self.count = (file.count or 1) if literal else None
        self.single, self.int8 = file.single, False
        self.weights, self.steps = Weights(), nn.ModuleDict()
        self._plan: list[tuple[Operation, str | Known]] = []
        self._constants: dict[str, np.ndarray] = {}
        self._names: dict[str, str] = {}
        _Translation(file, self).run(numbers=numbers)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch logits"]:
        if self.count is None:
            found = self._run(x)
            return found[:, None] if found.dim() == 1 else found.flatten(1) if found.dim() > 2 else found
        return torch.cat([self._alone(image) for image in x.split(1)]) if len(x) > 1 else self._alone(x)

    def _alone(self, image: Float[Tensor, "1 *shape"]) -> Float[Tensor, "1 logits"]:
        """Run an image as often as the file takes images."""
        count = self.count or 1
        if count == 1:
            return self._run(image[0] if self.single else image).reshape(1, -1)
        return self._run(image.expand(count, *image.shape[1:]))[:1].flatten(1)

    def _run(self, x: Tensor) -> Tensor:
        found: Any = self.values(x)[self.logits]
        logits: Tensor = found.real() if isinstance(found, Lazy) else found
        return logits

    def values(self, x: Tensor) -> dict[str, Value]:
        """Run the file's operations; return all values by name.

        Raises:
            InputError: too many numbers follow from shapes.
        """
        values: dict[str, Value] = {**self._constants, self.image: x}
        values |= {name: getattr(self.weights, key) for name, key in self._names.items()}
        room = LARGEST_NUMBERS
        for operation, how in self._plan:
            inputs = [values[name] if name else None for name in operation.inputs]
            found = how(*inputs) if isinstance(how, Known) else self.steps[how](*inputs)
            several = found if isinstance(found, tuple | list) else (found,)
            room -= sum(value.size for value in several if isinstance(value, np.ndarray))
            if room < 0:
                raise InputError(
                    f"node {quoted(operation.name)}: more than {LARGEST_NUMBERS} numbers follow from shapes"
                )
            values.update(zip(operation.outputs, several, strict=False))
        return values

    def extra_repr(self) -> str:
        return f"file={self.sha256}"


class Repeated(nn.Module):
    """Run a network on several copies of an image."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network, self.count = network, count

    def forward(self, x: Float[Tensor, "1 *shape"]) -> Float[Tensor, "count logits"]:
        return self.network(x.expand(self.count, *x.shape[1:]))


class _Translation:
    """Sort a file's operators into constants, numbers known from shapes, and torch functions."""

    def __init__(self, file: OnnxFile, network: OnnxNetwork) -> None:
        self.file, self.network = file, network
        self.constants = dict(file.constants)
        self.numbers: set[str] = set()  # known from shapes
        self.varying = {file.image}
        self.used = {file.logits, *(name for node in file.model.graph.node for name in node.input if name)}
        self.room = 4 * sum(value.size for value in file.constants.values()) + LARGEST_NUMBERS
        self.filled = MADE

    def run(self, *, numbers: bool) -> None:
        operations = [self._operation(node, i) for i, node in enumerate(self.file.model.graph.node)]
        open_ones = [operation for operation in operations if not self._folded(operation)]
        for operation in simplified(open_ones, self.constants, self.file.logits):
            numbers = all(map(self._is_number, filter(None, operation.inputs)))
            if operation.kind in ("Shape", "Size") or (numbers and not self._is_layer(operation)):
                self._know(operation)
            else:
                self._translate(operation)
        if numbers and self.file.logits in self.constants:
            self.network._constants[self.file.logits] = self.constants[self.file.logits]
        elif not numbers and self.file.logits not in self.varying:
            raise InputError(f"{self.file.path}: its output {self.file.logits!r} does not depend on the image")

    def _operation(self, node: Any, position: int) -> Operation:
        onnx, _ = packages()
        kind = node.op_type if node.domain in DOMAINS else f"{node.domain}:{node.op_type}"
        attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        return Operation(
            kind, node.name or f"{kind}_{position}", tuple(node.input), tuple(node.output), attributes, node
        )

    def _where(self, operation: Operation) -> str:
        return f"{self.file.path}: node {quoted(operation.name)} ({operation.kind[:60]}, opset {self.file.opset})"

    def _folded(self, operation: Operation) -> bool:
        """Compute an operation that is constant; return whether it is."""
        if not all(name in self.constants for name in operation.inputs if name) or self._is_layer(operation):
            return False
        filled = operation.kind == "ConstantOfShape"  # weights of one number, as in networks without training
        evaluate = Known(operation, self._evaluator(operation), self.filled if filled else self.room)
        try:
            found = evaluate(*(self.constants[name] if name else None for name in operation.inputs))
        except Exception as error:  # any error of numpy and onnx about a broken constant
            raise InputError(f"{self._where(operation)}: cannot be computed: {one_line(error)}") from error
        size = sum(np.size(value) for value in found)
        self.room, self.filled = (self.room, self.filled - size) if filled else (self.room - size, self.filled)
        self.constants.update(zip(operation.outputs, map(np.asarray, found), strict=False))
        return True

    def _is_layer(self, operation: Operation) -> bool:
        """Return whether an operation is a layer that runs in torch, even if it is applied to weights alone."""
        if operation.kind in (*quantized.WEIGHTS, "QuantizeLinear"):
            return operation.kind != "QuantizeLinear"
        several = any(self.constants[name].size > 1 for name in operation.inputs if name in self.constants)
        return several and operation.kind in OPERATORS and operation.kind not in (*SIZES, "Shape", "Size")

    def _evaluator(self, operation: Operation) -> Any:
        if operation.kind in ("Shape", "Size"):
            return None
        if operation.kind not in SIZES:
            raise InputError(f"{self._where(operation)}: is an operator without translation for constants")
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        inputs, outputs = (
            [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name]
            for names in (operation.inputs, operation.outputs)
        )
        graph = helper.make_graph([operation.node], "known", inputs, outputs)
        try:
            opset = [helper.make_opsetid("", self.file.opset)]
            return ReferenceEvaluator(helper.make_model(graph, opset_imports=opset))
        except Exception as error:  # unknown operators raise errors of many classes
            raise InputError(f"{self._where(operation)}: {one_line(error)}") from error

    def _is_number(self, name: str) -> bool:
        value = self.constants.get(name)
        return name in self.numbers or (value is not None and (value.dtype.kind in "iub" or value.size <= FEW))

    def _know(self, operation: Operation) -> None:
        self.network._constants |= {name: self.constants[name] for name in operation.inputs if name in self.constants}
        self.network._plan.append((operation, Known(operation, self._evaluator(operation), LARGEST_NUMBERS)))
        self.numbers.update(operation.outputs)

    def _translate(self, operation: Operation) -> None:
        varying = tuple(name in self.varying for name in operation.inputs)
        literal = self.network.count is not None
        call = Call(
            self._where(operation), self.file.opset, self._outputs(operation), varying, self.file.count, literal
        )
        self._check(call, operation)
        statistics = operation.inputs[3:] if operation.kind == "BatchNormalization" else ()
        whole = [operation.inputs[i] for i in quantized.WEIGHTS.get(operation.kind, ()) if i < len(operation.inputs)]
        for name in filter(self.constants.__contains__, operation.inputs):
            self._keep(name, operation.kind, statistic=name in statistics, whole=name in whole)
        self.network.int8 |= operation.kind in quantized.OPERATORS and operation.kind != "DequantizeLinear"
        key = _unique(re.sub(r"\W+", "_", operation.name).strip("_") or operation.kind, self.network.steps)
        self.network.steps[key] = Step(call, operation)
        self.network._plan.append((operation, key))
        if any(varying):
            self.varying.update(operation.outputs)

    def _outputs(self, operation: Operation) -> int:
        """Count the outputs, up to the last one that is used; of operators that always have as many, all."""
        names = list(operation.outputs)
        while len(names) > 1 and names[-1] not in self.used and operation.kind not in COUNTED:
            names.pop()
        return len(names)

    def _check(self, call: Call, operation: Operation) -> None:
        """Check that there is a function for these inputs and attributes."""
        if operation.kind not in OPERATORS:
            raise call.refuse("is an operator without translation")
        try:
            inspect.signature(OPERATORS[operation.kind]).bind(call, *operation.inputs, **operation.attributes)
        except TypeError as error:
            raise call.refuse(f"has unknown inputs or attributes: {error}") from None

    def _keep(self, name: str, kind: str, *, statistic: bool, whole: bool) -> None:
        """Store a constant: as a parameter, as a buffer if torch needs one or it is in integers, or as numbers."""
        value, network = self.constants[name], self.network
        if not whole and not is_weight(value, kind):
            network._constants[name] = value
        elif name not in network._names:
            key = _unique(re.sub(r"\W+", "_", name).strip("_") or "weight", network.weights)
            weight = torch.from_numpy(value.copy() if whole else value.astype(np.float32))
            if statistic or whole:
                network.weights.register_buffer(key, weight)
            else:
                network.weights.register_parameter(key, nn.Parameter(weight, requires_grad=False))
            network._names[name] = key


def _unique(name: str, taken: nn.Module) -> str:
    """Return a name that is free as an attribute of a module."""
    while hasattr(taken, name):
        name += "_"
    return name


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def load(
    path: str | Path, *, shape: Sequence[int] | None = None, output: str | int | None = None
) -> tuple[OnnxNetwork, OnnxFile, int]:
    """Load the network of a file; return it with the file as it was read and the number of classes.

    The logits of random inputs in [0, 1] and in [-2, 2] are checked against onnxruntime's, for single images and for a
    batch. Where the file gives nan or infinity outside of [0, 1] nothing is compared.

    Args:
        path: path of the file.
        shape: shape of an image, for axes that the file leaves open.
        output: name or place of the logits among several outputs.

    Raises:
        InputError: as for ``read``, or an operator or its form has no translation, or the logits differ from
            onnxruntime's.
    """
    path = Path(path)
    with loading(path, "an ONNX file that can be read"):
        file = read(path, shape=shape, output=output)
        try:
            found = _loaded(file)
        except InputError as error:
            if file.count in (None, 1) or file.single:
                raise
            found = _as_one_image(file, error)
        check_original(found[1])
        return found


def _loaded(file: OnnxFile) -> tuple[OnnxNetwork, OnnxFile, int]:
    """Load a network that is right for any number of images, or one that takes only as many as the file."""
    dynamic = any(node.op_type == quantized.DYNAMIC for node in file.model.graph.node)
    if dynamic:
        file = replace(file, count=1, remarks=(*file.remarks, quantized.ONE_BY_ONE))
    network = OnnxNetwork(file, literal=file.single or dynamic)
    try:
        return network, file, _compared(network, file)
    except OneByOne:
        file = replace(file, count=1)
    except InputError:  # perhaps its constants hold the number of images: only as many are right
        if file.count is None:
            raise
    network = OnnxNetwork(file, literal=True)
    return network, file, _compared(network, file)


def _as_one_image(file: OnnxFile, error: InputError) -> tuple[OnnxNetwork, OnnxFile, int]:
    """Load a file whose first axis is no batch; ``error`` tells what is wrong with it as a batch.

    Raises:
        InputError: as one image it gives no row of logits either.
    """
    sides = (file.count or 1, *file.shape)
    said = f"its input of shape {list(sides)} has no axis for the batch: it is read as one image"
    whole = replace(file, shape=sides, count=1, single=True, remarks=(*file.remarks, said))
    try:
        network = OnnxNetwork(whole, literal=True)
        return network, whole, _compared(network, whole)
    except InputError as other:
        if not isinstance(error, NoRows | Mixed):
            raise error from None
        raise InputError(
            f"{error}; read as one image of shape {list(sides)}, without an axis for the batch: "
            f"{str(other).removeprefix(f'{file.path} ')}"
        ) from None


def _compared(network: OnnxNetwork, file: OnnxFile) -> int:
    """Compare a network's logits with onnxruntime's; return the number of classes.

    Raises:
        InputError: they differ, or the network or the file cannot be run.
    """
    network.eval()
    several = network if network.count is not None or file.count in (None, 1) else Repeated(network, file.count)
    work = check_cost(several, file.shape, str(file.path), strict=True)  # onnxruntime runs as many as it takes
    count = (CODED // 2 if computes_in_int8(network) else 3) if work < FEW_OPERATIONS else 1
    images = np.random.default_rng(0).random((2 * count, *file.shape), dtype=np.float32)
    images[count:] = 4 * images[count:] - 2
    alone = _run(network, images, file, 1)
    expected = Reference(file)(images)  # it tells a file that mixes images from one that is read incorrectly
    defined = np.isfinite(expected).all(1)
    if not defined[:count].all():
        raise InputError(f"{file.path} gives nan or infinity for pixels in [0, 1]")
    found = [
        one[defined] if len(one) == len(defined) else one for one in (alone, _run(network, images, file, len(images)))
    ]
    expected = expected[defined]
    sizes = np.abs(expected).max(1, keepdims=True).clip(min=1.0)  # per image: large ones hide nothing elsewhere
    differences = [np.abs((one - expected) / sizes).max(1) for one in found if one.shape == expected.shape]
    if len(differences) < len(found):
        raise InputError(f"{file.path} is read incorrectly: logits differ from onnxruntime's in shape")
    worst = float(np.max(differences, initial=0.0))
    if not worst <= TOLERANCE:
        apart = f"logits differ from onnxruntime's by {worst:.3g} of their size"
        raise InputError(f"{file.path} is read incorrectly: {apart}{_advice(network)}")
    return expected.shape[1]


def _advice(network: OnnxNetwork) -> str:
    """Say what to do about an int8 file that onnxruntime does not run on integers alone, or not on exact sums."""
    if not computes_in_int8(network):
        return ""
    return (
        ". onnxruntime leaves some layers of a QDQ file in float32: quantise to QUInt8 values, or write QOperator form"
        "; on processors without VNNI it clips sums of int8 values: set reduce_range"
    )


def _run(network: OnnxNetwork, images: np.ndarray, file: OnnxFile, batch: int) -> np.ndarray:
    """Compute the logits of images in batches."""
    x = torch.from_numpy(images)
    try:
        with torch.no_grad():
            return torch.cat([network(part) for part in x.split(batch)]).numpy()
    except InputError:
        raise
    except Exception as error:  # whatever torch raises is about the file
        why = one_line(error)
        raise InputError(f"{file.path} cannot be run as a torch network: {type(error).__name__}: {why}") from error
