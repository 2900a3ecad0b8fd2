"""Two networks of one architecture in one graph: the relaxation of ReLU, the graph, and identical copies.

A graph that is wrong would prove that a student follows its teacher where it does not.
"""

import copy
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from tests.marks import thin
from tests.verifiers.bound_propagation.native.test_joint import exports_once  # noqa: F401
from tests.verifiers.graph.nets import CASES, Fn
from tests.zoo import BY_NAME, Kind, mlp
from verifiers.bound_propagation.native.bounds import common
from verifiers.bound_propagation.native.coupling import linked
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, project, random_start
from verifiers.graph.capture import capture
from verifiers.graph.difference import coupled, same_structure
from verifiers.graph.operators import Interval
from verifiers.graph.program import Pair
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.relu_difference import ReluDifference, _corners
from verifiers.graph.rows import Rows

KINDS = {**CASES, **BY_NAME}
Change = Callable[[nn.Module], None]


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The relaxation of relu(s) - relu(t)


def boxes_of(count: int, scale: float, seed: int = 0) -> list[Interval]:
    """Boxes of t, s = t + d and d: wide, narrow and of no width, with every combination of signs."""
    generator = torch.Generator().manual_seed(seed)

    def box() -> Interval:
        center = torch.randn(1, count, generator=generator, dtype=torch.float64)
        width = 10 ** (-8 * torch.rand(1, count, generator=generator, dtype=torch.float64)) * 2
        width = torch.where(torch.rand(1, count, generator=generator) < 0.1, 0.0, width)
        return Interval(scale * (center - width), scale * (center + width))

    t, d = box(), box()
    small = torch.rand(1, count, generator=generator) < 0.5  # differences are small beside the values
    d = Interval(*(torch.where(small, 0.01 * end, end) for end in d))
    zeros = torch.rand(4, 1, count, generator=generator) < 0.05  # ends that are exactly 0
    t, d = (
        Interval(
            torch.where(zeros[2 * i] & (box.high >= 0), 0.0, box.low),
            torch.where(zeros[2 * i + 1] & (box.low <= 0) & ~zeros[2 * i], 0.0, box.high),
        )
        for i, box in enumerate((t, d))
    )
    return [t, Interval(t.low + d.low, t.high + d.high), d]


def unstable_boxes(count: int, scale: float, seed: int = 0) -> list[Interval]:
    """Linked boxes of t, s and d in which t and s have both signs; d is narrow or wide, and of any sign."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: int) -> Tensor:
        return torch.rand(shape, 1, 4 * count, generator=generator, dtype=torch.float64)

    ends, (width, centre) = scale * draw(2), draw(2)
    size = scale * 10 ** (-6 * width) * 2
    t, d = Interval(-ends[0], ends[1]), Interval(size * (centre - 1), size * centre + size / 4 * (centre > 0.5))
    boxes = list(linked(*tightened([t, Interval(t.low + d.low, t.high + d.high), d], seed), common))
    chosen = ReluDifference.open(*boxes[:2])[0].nonzero().flatten()[:count]
    return [Interval(box.low[:, chosen], box.high[:, chosen]) for box in boxes]


def tightened(boxes: list[Interval], seed: int = 1) -> list[Interval]:
    """A tighter box of s, which some of the points of t and d leave."""
    t, s, d = boxes
    generator = torch.Generator().manual_seed(seed)
    cut = torch.rand(2, *s.low.shape, generator=generator, dtype=torch.float64) * 0.5
    return [t, Interval(s.low + cut[0] * (s.high - s.low), s.high - cut[1] * (s.high - s.low)), d]


def points_of(boxes: list[Interval], per_axis: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """A grid over t and d with the kinks, ``(points, boxes)``; nan where s leaves its box."""
    t, s, d = boxes
    share = torch.linspace(0, 1, per_axis, dtype=torch.float64)[:, None]
    ts = torch.cat([torch.lerp(t.low, t.high, share), torch.zeros_like(t.low).clamp(t.low, t.high)])
    ds = torch.cat([torch.lerp(d.low, d.high, share), torch.zeros_like(d.low).clamp(d.low, d.high)])
    ts, ds = ts.repeat_interleave(len(ds), 0), ds.repeat(len(ts), 1)
    hits = torch.cat([torch.zeros_like(t.low), s.low, s.high])  # where t + d is at its kink or an end of its box
    ds = torch.cat([ds, *((hit - ts).clamp(d.low, d.high) for hit in hits)])
    ts = ts.repeat(4, 1)
    ss = ts + ds
    outside = (ss < s.low) | (ss > s.high)
    return ts.masked_fill(outside, torch.nan), ss, ds


def inputs(boxes: list[Interval]) -> list[Interval]:
    """Boxes of relu(t), relu(s), t, s and d."""
    return [*(Interval(*Relu().interval(*box)) for box in boxes[:2]), *boxes]


def difference(points: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return points[1].relu() - points[0].relu()


def planes_at(
    boxes: list[Interval], points: tuple[Tensor, Tensor, Tensor], sign: float, alpha: Alpha | None = None
) -> Tensor:
    """The plane below (sign 1) or above (sign -1), by its rows, at points; one row for each box."""
    count = boxes[0].low.shape[1]
    rows = Rows(sign * torch.eye(count, dtype=torch.float64))
    pushed = ReluDifference().relax(inputs(boxes), alpha).push(rows, torch.zeros(count, dtype=torch.int64))
    assert pushed.constant is not None and pushed.inputs[0] is None and pushed.inputs[1] is None
    slopes = [torch.zeros(count, count) if part is None else part.values for part in pushed.inputs[2:]]
    assert all(bool((slope == slope.diag().diag()).all()) for slope in slopes), "boxes are mixed"
    value = sum((slope.diag() * point for slope, point in zip(slopes, points, strict=True)), pushed.constant)
    return sign * value


def linked_boxes(boxes: list[Interval]) -> list[Interval]:
    return list(linked(*boxes, common))


def draw(seed: int, count: int) -> Alpha:
    """Slopes of the planes below and above."""
    generator = torch.Generator().manual_seed(seed)
    below, above = torch.rand(2, 1, 2, count, generator=generator, dtype=torch.float64)
    return below, above


SCALES = [1.0, 1e4, 1e-150, 1e150]


@pytest.mark.parametrize("tight", [False, True, None], ids=["whole", "tighter s", "both unstable"])
@pytest.mark.parametrize("scale", SCALES)
def test_planes_and_interval_enclose_the_difference(scale: float, tight: bool | None) -> None:
    for seed in range(2):
        boxes = unstable_boxes(400, scale, seed) if tight is None else boxes_of(400, scale, seed)
        boxes = linked_boxes(tightened(boxes, seed)) if tight else boxes
        points = points_of(boxes)
        value, free = difference(points), draw(seed, 400)
        assert bool(value.isfinite().any(0).all()), "boxes without a point"
        size = sum(box.low.abs().maximum(box.high.abs()) for box in boxes)
        slack = 1e-14 * size
        interval = ReluDifference().interval(*inputs(boxes))
        for name, low, high in (
            ("planes", planes_at(boxes, points, 1.0), planes_at(boxes, points, -1.0)),
            ("free planes", planes_at(boxes, points, 1.0, free), planes_at(boxes, points, -1.0, free)),
            ("interval", interval.low, interval.high),
        ):
            broken = torch.maximum(low - value, value - high) - slack
            worst = broken.nan_to_num(-1.0).amax(0)
            at = int(worst.argmax())
            assert worst[at] <= 0, (
                f"{name} of t {boxes[0].low[0, at]:.3g} .. {boxes[0].high[0, at]:.3g}, d {boxes[2].low[0, at]:.3g} .. "
                f"{boxes[2].high[0, at]:.3g} broken by {worst[at] / size[0, at]:.3g} of their size"
            )


def test_planes_hold_in_exact_arithmetic_where_they_touch() -> None:
    """Without a tolerance: the offset leaves room for the rounding with which it is computed."""
    t, s, d = unstable_boxes(60, 1.0)
    below, above = ReluDifference().relax(inputs([t, s, d]))
    at_t, at_s = _corners(*(Interval(box.low[0], box.high[0]) for box in (t, s, d)))
    assert at_t.shape[1] == 60, "too few boxes to look at"
    for sign, plane in ((1, below), (-1, above)):
        in_t, in_s, offset = ([Fraction(v) for v in part[0].tolist()] for part in plane[:3])
        for xs, ys in zip(at_t.tolist(), at_s.tolist(), strict=True):
            for i, (x, y) in enumerate(zip(map(Fraction, xs), map(Fraction, ys), strict=True)):
                value = in_s[i] * y - in_t[i] * x + offset[i]
                broken = sign * (value - (max(y, Fraction(0)) - max(x, Fraction(0))))
                assert broken <= 0, f"a plane is broken by {float(broken):.3g}"


def test_every_case_of_signs_is_among_the_boxes() -> None:
    t, s, d = boxes_of(500, 1.0)
    cases = {tuple(int(b.low[0, i] >= 0) - int(b.high[0, i] <= 0) for b in (t, s, d)) for i in range(t.low.shape[1])}
    assert len(cases) >= 17, f"only {sorted(cases)}: a box has a sign and s follows t and d"


@pytest.mark.parametrize(
    "t, d", [((0.5, 1), (-0.3, 0.2)), ((-3, -1), (-0.5, 0.5)), ((-2, -1), (3, 4)), ((3, 4), (-7, -5))]
)
def test_planes_are_exact_where_both_are_stable(t: tuple[float, float], d: tuple[float, float]) -> None:
    boxes = [Interval(doubles(a)[None], doubles(b)[None]) for a, b in (t, (t[0] + d[0], t[1] + d[1]), d)]
    whole = boxes[1]
    third = (whole.high - whole.low) / 3
    for s in (whole, Interval(whole.low, whole.low + third), Interval(whole.high - third, whole.high)):
        case = [boxes[0], s, boxes[2]]
        points = points_of(case)
        value = difference(points)
        for sign in (1.0, -1.0):
            apart = (planes_at(case, points, sign) - value).abs().nan_to_num(0.0)
            assert float(apart.max()) < 1e-14, f"off by {float(apart.max()):.3g} where g is linear (s {s})"
        masks = ReluDifference().inputs_to_tighten(inputs(case))
        assert not any(mask is not None and bool(mask.any()) for mask in masks), "a line is called nonlinear"


def test_the_difference_is_its_own_interval_where_both_are_active() -> None:
    boxes = [Interval(doubles(a)[None], doubles(b)[None]) for a, b in ((1, 5), (1.1, 5.2), (0.1, 0.2))]
    low, high = ReluDifference().interval(*inputs(boxes))
    assert (float(low), float(high)) == (0.1, 0.2), f"{float(low)} .. {float(high)}"


def test_a_difference_of_zero_stays_zero() -> None:
    t = boxes_of(200, 1.0)[0]
    none = Interval(torch.zeros_like(t.low), torch.zeros_like(t.low))
    boxes = [t, t, none]
    assert all(bool((end == 0).all()) for end in ReluDifference().interval(*inputs(boxes))), (
        "an interval of 0 has width"
    )
    points = points_of(boxes)
    for sign in (1.0, -1.0):
        assert float(planes_at(boxes, points, sign).abs().nan_to_num(0.0).max()) < 1e-13, "a plane of 0 is not 0"


# The graph of two networks


def pruned(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            small = module.weight.abs() < module.weight.abs().flatten().quantile(0.3)
            module.weight.data[small] = 0.0


def quantised(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            step = module.weight.abs().amax() / 127
            module.weight.data = (module.weight / step).round() * step


def tuned(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        size = parameter.detach().abs().mean()
        parameter.data += 0.02 * size * torch.randn(parameter.shape, generator=generator)


def only(name: str, change: float = 0.05) -> Change:
    """One parameter or buffer is another."""

    def edit(network: nn.Module) -> None:
        tensor = network.state_dict()[name]
        tensor += change * (1 + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3)))

    return edit


def changed(network: nn.Module, change: Change) -> nn.Module:
    """A changed copy."""
    edited = copy.deepcopy(network).requires_grad_(False)
    change(edited)
    return edited.eval()


def graph_engine(student: nn.Module, teacher: nn.Module, x: Tensor, *, rounded: bool = True) -> Native:
    graphs = capture(student, x[:1]), capture(teacher, x[:1])
    assert same_structure(*graphs), "a copy is called another architecture"
    return Native(Pair(student, teacher, difference=True), x, graph=coupled(*graphs, rounded=rounded))


def check(student: nn.Module, teacher: nn.Module, kind: Kind, *, norm: Norm = Norm.LINF, factor: float = 1.0) -> None:
    """The graph gives both networks' logits, and no point breaks its bounds of logits and of their differences."""
    x = kind.images(2).double()
    engine = graph_engine(student, teacher, x)
    points = torch.rand(8, *kind.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = (copy.deepcopy(network).double()(points).detach() for network in (student, teacher))
    expected = torch.cat([ours, theirs, ours - theirs], 1)
    apart = float((engine.graph(points) - expected).abs().max() / expected.abs().max().clamp_min(1.0))
    assert apart < 1e-12, f"the coupled graph is off by {apart:.3g}"
    rows, eps = rows_of(ours.shape[1]), factor * doubles(0.03, 0.3)
    tried = torch.stack([engine.model(point) @ rows.mT for point in tries(x, eps, norm)])
    least = tried.amin(0) + 1e-9
    for method in ("ibp", "crown"):
        bound = engine.ask(Balls(x, eps, norm), rows.expand(2, -1, -1), method).bound
        assert bool((bound <= least).all()), f"{method} in {norm} is broken by {float((bound - least).max()):.3g}"


def rows_of(classes: int) -> Tensor:
    """Both networks' logits and their differences, as one output and as two, with either sign."""
    eye = torch.eye(3 * classes, dtype=torch.float64)
    rows = torch.cat([eye, eye[:classes] - eye[classes : 2 * classes]])
    return torch.cat([rows, -rows])


def tries(x: Tensor, eps: Tensor, norm: Norm, count: int = 40) -> Iterator[Tensor]:
    """Random points of each ball, half of them corners of the box or points of the sphere."""
    generator = torch.Generator().manual_seed(9)
    for kind in range(count):
        delta = random_start(x, eps, norm, generator)
        if kind % 2:
            delta = project(delta.sign() * 1e3 if norm is Norm.LINF else delta * 1e3, eps, norm)
        yield (x + delta).clamp(0.0, 1.0)


ARCHITECTURES = [
    "deep mlp",
    "cnn",
    "residual",
    "max pool",
    "batch norm",
    "class token",
    "encoder, norm first",
    "squeeze and excitation",
    "silu cnn",
]


COPIES: list[tuple[str, Change]] = [
    *((name, tuned) for name in ARCHITECTURES if name != "batch norm"),
    ("deep mlp", pruned),
    ("batch norm", quantised),
]


@pytest.mark.parametrize("name, change", thin(COPIES), ids=[f"{name} {change.__name__}" for name, change in COPIES])
@pytest.mark.thin(2)
def test_the_graph_of_a_copy_is_both_networks_and_sound(name: str, change: Change) -> None:
    kind = KINDS[name]
    teacher = kind.network(1)
    check(changed(teacher, change), teacher, kind)


@pytest.mark.parametrize("norm, factor", [(Norm.L2, 2.0), (Norm.L1, 5.0)])
@pytest.mark.parametrize("name", ["deep mlp", "residual"])
@pytest.mark.thin(2)
def test_the_graph_is_sound_for_every_norm(name: str, norm: Norm, factor: float) -> None:
    teacher = KINDS[name].network(1)
    check(changed(teacher, tuned), teacher, KINDS[name], norm=norm, factor=factor)


SINGLE = [
    ("deep mlp", "1.bias"),
    ("batch norm", "1.running_mean"),
    ("batch norm", "5.weight"),
    ("prelu per channel", "0.3.weight"),
    ("prelu of maps", "0.3.weight"),
    ("class token", "0.token"),
    ("class token", "0.position"),
    ("conv transpose", "0.3.bias"),
    ("matmul by constants", "0.right"),
    ("multihead", "0.mha.in_proj_bias"),
]


@pytest.mark.parametrize("name, entry", thin(SINGLE), ids=[" ".join(case) for case in SINGLE])
@pytest.mark.thin(3)
def test_copies_that_differ_in_one_tensor(name: str, entry: str) -> None:
    kind = KINDS[name]
    teacher = kind.network(1)
    student, x = changed(teacher, only(entry)), kind.images(4, seed=5)
    assert not torch.equal(student(x), teacher(x)), f"{entry} of {name} makes no difference"
    check(student, teacher, kind)


def differences(engine: Native, x: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Bounds of |student logit - teacher logit|."""
    eye = torch.eye(engine.graph.classes // 3, dtype=torch.float64)
    rows = torch.cat([torch.cat([eye, -eye, 0 * eye], 1), torch.cat([-eye, eye, 0 * eye], 1)])
    return -engine.ask(Balls(x.double(), eps, norm), rows.expand(len(x), -1, -1), "crown").bound


IDENTICAL = [
    "batch norm",
    "class token",
    "encoder, norm first",
    "squeeze and excitation",
    "silu",
    "leaky",
    "prelu per channel",
    "hardswish",
    "sqrt",
    "conv transpose",
]


@pytest.mark.parametrize("name", thin(IDENTICAL))
@pytest.mark.thin(2)
def test_identical_copies_differ_by_zero_on_every_ball(name: str) -> None:
    kind = KINDS[name]
    network, x = kind.network(1), kind.images(2)
    engine = graph_engine(copy.deepcopy(network), network, x, rounded=False)
    for norm in Norm:
        worst = float(differences(engine, x, doubles(0.05, 1.0), norm).abs().max())
        assert worst <= 1e-12, f"{name}: copies differ by up to {worst:.3g} in {norm}"


@pytest.mark.parametrize("name", ["mlp", "silu"])
def test_a_bias_of_the_last_layer_shifts_exactly(name: str) -> None:
    kind = KINDS[name]
    teacher, x = kind.network(1), kind.images(2)
    last = [entry for entry in teacher.state_dict() if entry.endswith("bias")][-1]
    student = changed(teacher, only(last))
    shift = (teacher(x) - student(x)).detach().double()
    found = differences(graph_engine(student, teacher, x, rounded=False), x, doubles(0.1, 0.5), Norm.LINF)
    assert torch.allclose(found, torch.cat([shift, -shift], 1), atol=1e-5), "a constant difference is not exact"


# What is no copy


def conv(*args: int, **more: int) -> nn.Module:
    head = nn.Conv2d(2, 4, 3, padding=1)
    return nn.Sequential(head, nn.ReLU(), nn.Conv2d(*args, **more), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "kernels": (lambda: conv(4, 4, 3, padding=1), lambda: conv(4, 4, 1)),
    "dilation": (lambda: conv(4, 4, 3, padding=1), lambda: conv(4, 4, 3, padding=2, dilation=2)),
    "groups": (lambda: conv(4, 4, 3, padding=1), lambda: conv(4, 4, 3, padding=1, groups=4)),
    "signs": (
        lambda: nn.Sequential(Fn(lambda x: x + x.relu()), nn.Flatten(), nn.Linear(72, 3)),
        lambda: nn.Sequential(Fn(lambda x: torch.add(x, x.relu(), alpha=-1)), nn.Flatten(), nn.Linear(72, 3)),
    ),
    "activation": (lambda: nn.Sequential(nn.ReLU(), conv(2, 4, 1)[4], nn.Linear(72, 3)), lambda: conv(4, 4, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_not_taken_for_copies(name: str) -> None:
    x = KINDS["cnn"].images(1)
    graphs = [capture(build(), x) for build in OTHERS[name]]
    assert not same_structure(*graphs), f"networks with other {name} are called copies"


SETTINGS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "windows of max pools": (lambda: nn.MaxPool2d(2), lambda: nn.MaxPool2d(3, 2, 1)),
    "eps of group norms": (lambda: nn.GroupNorm(1, 2), lambda: nn.GroupNorm(1, 2, eps=0.5)),
    "axes of softmax": (lambda: nn.Softmax(2), lambda: nn.Softmax(3)),
    "slopes of leaky": (lambda: nn.LeakyReLU(0.1), lambda: nn.LeakyReLU(0.3)),
    "alpha of elu": (lambda: nn.Sequential(normal(), nn.ELU(1.0)), lambda: nn.Sequential(normal(), nn.ELU(1.5))),
    "axes of flips": (lambda: Fn(lambda x: x.flip(2)), lambda: Fn(lambda x: x.flip(3))),
}


def normal() -> nn.Module:
    return Fn(lambda x: x * 4.0 - 2.0)


@pytest.mark.parametrize("name", thin(SETTINGS))
def test_copies_with_other_settings_are_both_networks(name: str) -> None:
    """Operators without weights may differ in their settings; the graph must see it on inputs that do not differ."""
    kind = KINDS["cnn"]
    one, other = (make() for make in SETTINGS[name])
    x = kind.images(2)
    tail = nn.Sequential(nn.Flatten(), nn.Linear(one(x).flatten(1).shape[1], 5), nn.ReLU(), nn.Linear(5, 3))
    check(nn.Sequential(one, tail).eval(), nn.Sequential(other, copy.deepcopy(tail)).eval(), kind)


def test_a_wrong_graph_is_refused() -> None:
    kind = KINDS["mlp"]
    teacher, x = kind.network(), kind.images(2)
    student = changed(teacher, only("1.bias", 1e-4))
    graph = coupled(capture(teacher, x[:1]), capture(teacher, x[:1]))
    with pytest.raises(Contradiction, match="another network"):
        Native(Pair(student, teacher, difference=True), x, graph=graph)


def test_a_pruned_copy_is_bounded_at_least_twice_as_tightly_as_two_networks() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = mlp((12, 32, 32, 32, 4)).eval().requires_grad_(False)
    for parameter in teacher.parameters():  # as in trained networks, few of the weights matter
        parameter.copy_(torch.randn(parameter.shape, generator=generator) ** 3 * parameter.shape[-1] ** -0.5 / 3)
    x = torch.rand(4, 12, generator=generator)
    student = changed(teacher, pruned)
    engine, separate = graph_engine(student, teacher, x), Native(Pair(student, teacher), x)
    row = doubles(1, -1, 0, 0)
    ours, theirs = torch.cat([row, 0 * row, 0 * row]), torch.cat([0 * row, row, 0 * row])
    for eps in (0.02, 0.1, 0.3):
        radii = torch.full((4,), eps, dtype=torch.float64)

        def width(engine: Native, *rows: Tensor, radii: Tensor = radii) -> Tensor:
            both = torch.stack([*rows, *(-row for row in rows)])[:, : engine.graph.classes].expand(4, -1, -1)
            return -engine.ask(Balls(x, radii, Norm.LINF), both, "crown").bound.sum(1)

        ratio = width(separate, ours, theirs) / width(engine, ours - theirs)
        assert float(ratio.min()) >= 2, f"at {eps} only {[f'{r:.2f}' for r in ratio.tolist()]} times as tight"


@pytest.mark.parametrize("name", ["sqrt", "quotient"])
def test_a_function_with_a_domain_is_applied_to_each_network(name: str) -> None:
    """The box of t + d may leave the domain; that of s does not."""
    teacher = KINDS[name].network()
    check(changed(teacher, tuned), teacher, KINDS[name])
