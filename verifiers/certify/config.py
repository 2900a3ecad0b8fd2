"""The settings of a certification, for the command line, YAML and Python."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import SerializeAsAny, model_validator

from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.quantities import Arithmetic, Epsilon, Norm, beyond_images
from verifiers.core.settings import Count, EpsilonText, Seed, Strict
from verifiers.core.status import About, Guarantee
from verifiers.methods.base import Method
from verifiers.methods.match import Match
from verifiers.methods.registry import BY_KIND, find, parse, settings_of
from verifiers.runtime.staff import Staff

DEFAULT_METHODS = ("pgd", "ibp", "crown")


class CertifyConfig(Strict):
    """The settings of a certification: the ball, the methods with their settings, the seed.

    ``methods`` accepts names (also in one text, ``"pgd,crown"``), methods (``Crown(tolerance=0.01)``) and mappings
    (``{kind: crown, tolerance: 0.01}``).
    ``options`` apply to every method that has them and does not set them itself; an option that no method has is
    rejected.

    Attributes:
        eps: the radius at which certified accuracy is reported, pixel units, like "8/255".
        norm: norm of the ball.
        methods: each at most once; attacks run first, in any order given.
        seed: keys all randomness, together with the sample index.
        batch_size: samples per batch; each method's own when None. Halved when memory runs out.
        workers: processes that answer batches; rows are the same, to the last bit where each has the same threads.
        cluster: a Dask cluster that answers them instead, like "local:4" or "tcp://host:8786".
        arithmetic: float32 proves radii for the deployed network with its rounding, real for the network over the real
            numbers, as publications do.

    Example:
        >>> config = CertifyConfig(eps="2/255", methods=("pgd", "crown"), options={"steps": 50})
        >>> [method.kind for method in config.methods]
        ['pgd', 'crown']
    """

    eps: EpsilonText
    norm: Norm = Norm.LINF
    methods: tuple[SerializeAsAny[Method], ...] = ()
    seed: Seed = 0
    batch_size: Count | None = None
    workers: Count = 1
    cluster: str | None = None
    arithmetic: Arithmetic = Arithmetic.FLOAT32

    if TYPE_CHECKING:  # the accepted types; pydantic's own signature has the stored ones

        def __init__(
            self,
            *,
            eps: str | float | Epsilon,
            norm: str | Norm = Norm.LINF,
            methods: str | Method | Sequence[str | Method | Mapping[str, Any]] = DEFAULT_METHODS,
            options: Mapping[str, Any] | None = None,
            seed: int = 0,
            batch_size: int | None = None,
            workers: int = 1,
            cluster: str | None = None,
            arithmetic: str | Arithmetic = Arithmetic.FLOAT32,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _with_settings(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        options, named = values.pop("options", None) or {}, values.get("methods", DEFAULT_METHODS)
        if not isinstance(options, Mapping):
            raise InputError(f"options must be settings by name, like steps: 50, got {options!r}")
        if isinstance(named, str):
            named = named.split(",")
        if isinstance(named, Mapping | Method):
            named = (named,)
        if not isinstance(named, Iterable):
            raise InputError(f"methods must be names or settings of methods, like [pgd, crown], got {named!r}")
        values["methods"] = with_options(named, options)
        return values

    @model_validator(mode="after")
    def _each_once(self) -> "CertifyConfig":
        kinds = [method.kind for method in self.methods]
        if not kinds:
            raise ValueError("no method was named: name some, like pgd and crown")
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"each method once, got {', '.join(kinds)}")
        Staff(self.workers, self.cluster)
        return self

    @property
    def staff(self) -> Staff:
        """Who answers batches."""
        return Staff(self.workers, self.cluster)

    @property
    def ball(self) -> Epsilon:
        """The radius, exact and as a float."""
        return Epsilon.parse(self.eps)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The methods' names, in their order."""
        return tuple(method.kind for method in self.methods)

    @property
    def in_order(self) -> tuple[Method, ...]:
        """The methods in running order: attacks first, because proofs are checked against their counterexamples."""
        return tuple(sorted(self.methods, key=lambda method: method.guarantee is not Guarantee.ESTIMATE))

    @property
    def pairs(self) -> tuple[Method, ...]:
        """The methods about a network and its teacher."""
        return tuple(method for method in self.methods if method.about is About.PAIR)

    @property
    def looks_at_teacher(self) -> bool:
        """Whether a method is about a pair, or shares its noisy copies with a teacher."""
        return any(method.about in (About.PAIR, About.SMOOTHED) for method in self.methods)

    def alone(self) -> "CertifyConfig | None":
        """Drop the methods about a pair; None if there are no others."""
        methods = tuple(method for method in self.methods if method.about is not About.PAIR)
        return self.model_copy(update={"methods": methods}) if methods else None

    def with_points(self, *files: str) -> "CertifyConfig":
        """Have ``match`` try the counterexamples of further certificate files."""
        methods = tuple(
            method.model_copy(update={"points": (*method.points, *files)}) if isinstance(method, Match) else method
            for method in self.methods
        )
        return self.model_copy(update={"methods": methods})

    def at(self, eps: Epsilon) -> "CertifyConfig":
        """Replace the radius.

        Raises:
            InputError: the ball holds every image.
        """
        beyond = beyond_images(eps, self.norm)
        if beyond is not None:
            raise InputError(beyond)
        return self.model_copy(update={"eps": eps.text})


def with_options(named: Iterable[str | Mapping[str, Any] | Method], options: Mapping[str, Any]) -> tuple[Method, ...]:
    """Build methods from names, mappings or methods, each with the options that it has.

    Raises:
        InputError: a method is unknown, no method has a setting, or a setting is of the wrong kind.
    """
    named = tuple(named)
    kinds = [_kind(entry) for entry in named]
    known = list(dict.fromkeys(name for kind in kinds for name in settings_of(find(kind))))
    stray = next((name for name in options if name not in known), None)
    if stray is not None:
        owners = [kind for kind, method in BY_KIND.items() if stray in settings_of(method)]
        hint = f" It belongs to {', '.join(owners)}." if owners else did_you_mean(stray, known)
        raise InputError(f"none of the methods {', '.join(kinds)} has a setting {stray!r}.{hint}")
    methods = []
    for kind, entry in zip(kinds, named, strict=True):
        own = {name: value for name, value in options.items() if name in settings_of(find(kind))}
        given = entry.model_dump(exclude_unset=True) if isinstance(entry, Method) else entry
        own |= {} if isinstance(given, str) else {name: value for name, value in given.items() if name != "kind"}
        methods.append(parse(kind, own))
    return tuple(methods)


def _kind(entry: Any) -> str:
    kind = entry if isinstance(entry, str) else entry.kind if isinstance(entry, Method) else None
    if kind is None and isinstance(entry, Mapping):
        kind = entry.get("kind")
    if not isinstance(kind, str):
        raise InputError(f"a method is a name like crown, or settings with a kind, got {entry!r}")
    return kind.strip()
