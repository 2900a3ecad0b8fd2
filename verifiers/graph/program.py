"""A network prepared for certification: the program that is attacked, bounded, exported and hashed."""

import copy
import hashlib
import operator
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from verifiers.core.errors import Contradiction, Unsupported
from verifiers.geometry.balls import noise_like
from verifiers.graph.capture import Hidden, graph_of, precision_of, program_of
from verifiers.graph.executable import Images, OneByOne
from verifiers.graph.graph import Graph
from verifiers.graph.last_layer import Scores, scores_of
from verifiers.graph.sequence import written
from verifiers.graph.watch import blamed
from verifiers.runtime.alone import SHRINKS, TOLERANCE, Rounding, check_alone, differing, in_float64, probes, tried
from verifiers.runtime.oom import in_parts
from verifiers.runtime.outputs import rows_of
from verifiers.runtime.samples import device_of

T = TypeVar("T")


class Captured:
    """A network captured once, for images of one shape; a last layer that keeps the order of its scores is left out.

    Args:
        given: the network as its user wrote it.
        x: one image.
        entire: keep the last layer, and a single score as it is.
        paired: keep a last factor or shift.

    Attributes:
        scores: the program for one image, with its last layer and without it.
        module: the program for any number of images.
        whole: the same with its last layer.

    Raises:
        Unsupported: the network cannot be captured; the message names the line of its code if there is one.
    """

    def __init__(
        self, given: nn.Module, x: Float[Tensor, "1 *shape"], *, entire: bool = False, paired: bool = False
    ) -> None:
        made = program_of(given, x)
        image = x[:1].detach().to(precision_of(given, x))
        self._hold(Scores(made, made) if entire else scores_of(made, image, paired=paired), given, x)

    @classmethod
    def of(cls, scores: Scores, given: nn.Module, x: Float[Tensor, "1 *shape"]) -> "Captured":
        """Hold a program that was captured in another process."""
        made = cls.__new__(cls)
        made._hold(scores, given, x)
        return made

    def _hold(self, scores: Scores, given: nn.Module, x: Tensor) -> None:
        self.scores = scores
        self.plain = written(given) is not None and not scores.changed
        self._like = x[:1].detach()
        self.module: nn.Module = given if self.plain else Images(self.single)
        self.whole: nn.Module = Images(scores.whole) if scores.changed else self.module

    @property
    def single(self) -> fx.GraphModule:
        """The program for one image."""
        return self.scores.program

    @cached_property
    def exact_single(self) -> nn.Module:
        """The program in float64, for one image."""
        return self.exact.program if isinstance(self.exact, Images) else self.exact

    @cached_property
    def exact(self) -> nn.Module:
        """The program in float64."""
        return self.twin(torch.float64)

    def twin(self, dtype: torch.dtype) -> nn.Module:
        """Make a frozen copy of the program in another precision."""
        made = copy.deepcopy(self.module).to(dtype) if self.plain else Images(self.single, dtype=dtype)
        return made.eval().requires_grad_(False)

    @cached_property
    def graph(self) -> Graph:
        """The graph that is bounded, in float64."""
        found = self.lowered(torch.float64)
        return Graph(found.nodes, found.like, again=lambda: self.lowered(torch.float32))

    @cached_property
    def exact_whole(self) -> nn.Module:
        """The program with its last layer, in float64."""
        return Images(self.scores.whole, dtype=torch.float64) if self.scores.changed else self.exact

    def lowered(self, dtype: torch.dtype) -> Graph:
        """Make the graph in another precision.

        Raises:
            Unsupported: an operator is not known.
        """
        return graph_of([self.single], self._like, dtype)

    @cached_property
    def sha256(self) -> str:
        """The hash of the program: its operators with their arguments, and the bytes of its constants."""
        digest, numbers = hashlib.sha256(), dict[fx.Node, int]()
        for node in self.single.graph.nodes:
            args = fx.node.map_arg((node.args, node.kwargs), lambda given: f"%{numbers[given]}")
            numbers[node] = len(numbers)
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(self.single).detach()
                digest.update(f"constant {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                name = node.op if node.op != "call_function" else str(node.target)
                digest.update(f"{name} {args}\n".encode())
        return digest.hexdigest()


def check_program(given: nn.Module, captured: Captured, images: Tensor, expected: Tensor, rounding: Rounding) -> None:
    """Compare a program with the logits that the network gave to each image alone.

    Raises:
        Contradiction: they are two functions.
        Unsupported: they differ in float32 by far more than in float64.
    """
    with torch.no_grad():
        found = in_parts(lambda part: rows_of(captured.whole(part), len(part)), images)
    wrong = differing(found, expected, images, rounding)
    if wrong is not None:
        row, gap = wrong
        left = tried(lambda: _apart(given, captured, images[row : row + 1].double()))
        if left is not None and left <= SHRINKS * gap:
            raise Unsupported(
                "float32 is too coarse for the network: its logits and those of the captured program differ by "
                f"{gap:.3g}, and by {left:.3g} in float64; scale down the weights whose products cancel"
            )
        raise Contradiction(
            f"the captured program is another function than the network: logits differ by {gap:.3g}; its code may "
            "depend on the mode in which it runs"
        )


def check_order(found: Captured, images: Float[Tensor, "batch *shape"]) -> None:
    """Check that the last layer, which is left out, keeps the order of the scores; float32 may make two of them equal.

    Raises:
        Contradiction: it prefers another class.
    """
    if not found.scores.left_out or found.scores.one:
        return
    with torch.no_grad():
        scores, last = found.module(images), found.whole(images)
    best, other = scores.argmax(1, keepdim=True), last.argmax(1, keepdim=True)
    preferred = last.gather(1, other) > last.gather(1, best)
    far = scores.gather(1, best) - scores.gather(1, other) > TOLERANCE * scores.abs().amax(1, keepdim=True).clamp_min(1)
    if bool((preferred & far).any()):
        raise Contradiction(f"{found.scores.remark}: the network then predicts another class of an image")


def _apart(given: nn.Module, captured: Captured, image: Tensor) -> Tensor:
    """Compute how far the network and the program are apart in float64."""
    with torch.no_grad():
        return (rows_of(in_float64(given)(image), 1) - rows_of(captured.exact_whole(image), 1)).abs().max()


def _alone(network: nn.Module, images: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
    """Compute each image's logits alone.

    Raises:
        Contradiction: together they are others.
    """
    with torch.no_grad():
        alone = torch.cat([rows_of(network(image), 1) for image in images.split(1)])
        together = rows_of(network(images), len(images))
    wrong = differing(together, alone, images, lambda x: None)
    if wrong is not None:
        raise Contradiction(f"the network mixes the images of a batch: logits differ by {wrong[1]:.3g}")
    return alone


class Program:
    """Hold a network that is captured once, for every method.

    A network that cannot be captured is run on one image at a time: it can be attacked and smoothed, and nothing can be
    proved about it. Do not change the weights while a program is in use.

    Args:
        given: maps images in [0, 1] to logits, in eval mode.
        entire: keep the network's last layer, and a single output as it is: for questions about the outputs themselves.
        paired: keep a last factor or shift: for questions about the difference of two networks' logits.
    """

    def __init__(self, given: nn.Module, *, entire: bool = False, paired: bool = False) -> None:
        self.given, self.entire, self.paired = given, entire, paired
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, network: "nn.Module | Program") -> "Program":
        """Wrap a module; a program is returned unchanged."""
        return network if isinstance(network, Program) else cls(network)

    def capture(self, x: Float[Tensor, "batch *shape"]) -> Captured:
        """Capture the network for images like ``x``, and compare the program with it there.

        Raises:
            Unsupported: the network cannot be captured.
            Contradiction: the program is another function than the network.
        """

        def make() -> Captured:
            found = Captured(self.given, x[:1], entire=self.entire, paired=self.paired)
            if not found.plain:
                noise = noise_like(x[:2])
                images = torch.cat([x[:2], noise]).to(precision_of(self.given, x))
                check_program(self.given, found, images, _alone(self.given, images), self._rounding)
            return found

        return self.once("captured", make)

    def hold(self, first: Float[Tensor, "batch *shape"]) -> nn.Module:
        """Compare the network with itself, image by image, and with its program; return the module that runs from now.

        Raises:
            InputError: the network keeps state, or mixes the images of a batch.
        """
        with suppress(Unsupported, Contradiction):
            self.capture(first)
        images, found = probes(self.given, first), self._made["captured"]
        single = isinstance(found, Hidden) and found.single  # code for one image, which no batch can be given to
        expected = check_alone(self.module if single else self.given, images, self._rounding)
        if isinstance(found, Captured) and not found.plain:
            try:
                check_program(self.given, found, images, expected, self._rounding)
                check_order(found, images)
            except (Unsupported, Contradiction) as error:
                self._made["captured"] = error
        return self.module

    @property
    def module(self) -> nn.Module:
        """The program in its own precision, for any number of images.

        Before it is captured it is the network itself, and if it cannot be, the network on one image at a time.
        """
        if self.captured is not None:
            return self.captured.module
        return self.given if self.refusal is None else self.once("one by one", self._one_by_one)

    def _one_by_one(self) -> nn.Module:
        return OneByOne(self.given, entire=self.entire)

    @property
    def captured(self) -> Captured | None:
        """What was captured; None before, or if the network cannot be captured."""
        found = self._made.get("captured")
        return found if isinstance(found, Captured) else None

    @property
    def failure(self) -> Unsupported | Contradiction | None:
        """The error by which the network cannot be captured; None if it can be, or was not tried."""
        found = self._made.get("captured")
        return found if isinstance(found, Unsupported | Contradiction) else None

    @property
    def refusal(self) -> str | None:
        """The reason why the network cannot be captured; None if it can be, or was not tried."""
        return None if self.failure is None else str(self.failure)

    def restore(self, found: Captured | Unsupported | Contradiction) -> None:
        """Take what another process captured of the same network, or its failure."""
        self._made["captured"] = found

    @property
    def last_layer(self) -> str:
        """The last layer that is left out, in a few words; empty if the program is the whole network."""
        return "" if self.captured is None else self.captured.scores.remark

    @property
    def exact(self) -> nn.Module:
        """The program in float64, frozen."""
        if self.captured is None:
            raise RuntimeError("a program has a float64 copy after it was captured")
        return self.captured.exact

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return device_of(self.given)

    @property
    def sha256(self) -> str:
        """The hash of the program; empty if the network cannot be captured."""
        return "" if self.captured is None else self.captured.sha256

    def graph(self, x: Float[Tensor, "batch *shape"]) -> Graph:
        """Return the float64 graph for images like ``x``.

        Raises:
            Unsupported: the network cannot be captured, or an operator is not known.
            Contradiction: the program is another function than the network.
        """
        captured = self.capture(x)
        return self.once("graph", lambda: captured.graph)

    def check_gradient(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Check that the network can be differentiated, as attacks need.

        Raises:
            Unsupported: it cannot.
        """
        with blamed("the network has no gradient to attack by"), torch.enable_grad():
            image = x[:1].detach().clone().requires_grad_(True)
            torch.autograd.grad(self.module(image).sum(), image)

    def _rounding(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"] | None:
        """Measure the float32 error of the program's logits; None without a program."""
        found = self.captured
        if found is None:
            return None
        own, exact = found.whole, found.exact_whole
        with torch.no_grad():
            return in_parts(
                lambda part: rows_of((own(part).double() - exact(part.double())).abs(), len(part)).amax(1), x
            )

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Call ``make`` once per key and return its stored result afterwards.

        Unsupported and Contradiction are statements about the network: they are stored and raised again.
        """
        if key not in self._made:
            try:
                self._made[key] = make()
            except (Unsupported, Contradiction) as error:
                self._made[key] = error
        found = self._made[key]
        if isinstance(found, Unsupported | Contradiction):
            raise found.with_traceback(None)
        return found


class Pair(nn.Module):
    """Concatenate the student's logits and the teacher's, and with ``difference`` the student's less the teacher's."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, difference: bool = False) -> None:
        super().__init__()
        self.student, self.teacher, self.difference = student, teacher, difference

    def forward(self, x: Tensor) -> Tensor:
        ours, theirs = self.student(x), self.teacher(x)
        return torch.cat([ours, theirs, ours - theirs] if self.difference else [ours, theirs], 1)

    def extra_repr(self) -> str:
        return "difference" if self.difference else ""


class CapturedPair(Captured):
    """Two captured networks as one, whose graph has both logits over one image."""

    def __init__(
        self, parts: tuple[Captured, Captured], x: Float[Tensor, "1 *shape"], *, difference: bool = False
    ) -> None:
        self.parts, self.difference, self._like, self.plain = parts, difference, x[:1].detach(), True
        self.module = self.whole = Pair(*(part.module for part in parts), difference=difference)

    def lowered(self, dtype: torch.dtype) -> Graph:
        """Make the graph of both in another precision."""
        return graph_of([part.single for part in self.parts], self._like, dtype)

    def twin(self, dtype: torch.dtype) -> nn.Module:
        """Make a copy of both in another precision."""
        return Pair(*(part.twin(dtype) for part in self.parts), difference=self.difference)


class PairProgram(Program):
    """Hold two programs as one network with the logits of both, and with ``difference`` of one less the other."""

    def __init__(self, student: Program, teacher: Program, *, difference: bool = False) -> None:
        entire = student.entire and teacher.entire
        super().__init__(Pair(student.given, teacher.given, difference=difference), entire=entire)
        self.parts, self._difference = (student, teacher), difference

    def capture(self, x: Float[Tensor, "batch *shape"]) -> Captured:
        """Capture both networks."""
        student, teacher = self.parts
        parts = student.capture(x), teacher.capture(x)
        return self.once("captured", lambda: CapturedPair(parts, x[:1], difference=self._difference))
