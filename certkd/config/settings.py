"""Settings of data, networks and trainings: frozen models that refuse unknown keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from certkd.objectives import AnyObjective
from verifiers.core.errors import InputError, did_you_mean, quoted
from verifiers.core.quantities import Norm
from verifiers.core.settings import Count, CountOrZero, EpsilonText, Number, Positive, Radius, Seed, Strict


def _milestone(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"a share of the epochs is between 0 and 1, got {value:g}: after 60 of 100 epochs is 0.6")
    return value


#: A point of the training, as a share of its epochs.
Milestone = Annotated[Positive, BeforeValidator(_milestone)]


def _image_size(value: Any) -> Any:
    sides = value if isinstance(value, list | tuple) else str(value).replace(" ", "").split(",")
    if value == "as-is":
        return value
    try:
        whole = [int(str(side)) for side in sides]
    except ValueError:
        whole = []
    if isinstance(value, bool) or len(whole) not in (1, 2) or not all(1 <= side <= 10**5 for side in whole):
        raise ValueError(f"an image size is a side, H,W or as-is, like 224 or 32,48, got {quoted(value)}")
    return whole[0] if whole[0] == whole[-1] else f"{whole[0]},{whole[1]}"


def _known_optimizer(value: str) -> str:
    if value in ("adam", "adamw", "sgd"):
        return value
    from timm.optim import list_optimizers  # takes seconds

    known = [str(name) for name in list_optimizers()]
    if value not in known:
        raise ValueError(f"unknown optimizer {value!r}.{did_you_mean(value, known)}")
    return value


#: The known data sets, in files of their own form and as images in folders.
IN_ARRAYS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "modulations")
IN_FOLDERS = ("imagenet", "folder")


class DataConfig(Strict):
    """A data set.

    Attributes:
        name: of a known data set, or the path of arrays (.npz, .npy) or of a folder of images.
        root: the folder below which it lies.
        download: whether a data set or weights that are missing may be fetched.
        seed: of the splits that are cut from others, and of data that are generated.
        image_size: of images in folders: a side, "H,W", or "as-is". Images of exactly this size keep their pixels,
            others are resized and cropped.
        channels: of images in folders; those of the images when absent.
        limit: the number of training images to use.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    seed: Seed = 0
    image_size: Annotated[int | str, BeforeValidator(_image_size)] = 224
    channels: Literal[1, 3] | None = None
    limit: Count | None = None

    @property
    def in_folders(self) -> bool:
        """True if the data are images in folders, which have the size that is asked for."""
        return self.name in IN_FOLDERS or (self.name not in IN_ARRAYS and self.place.is_dir())

    @property
    def place(self) -> Path:
        """The path that a name is, here or below the root."""
        path = Path(self.name).expanduser()
        here = Path(self.name.rpartition(":")[0] or self.name).exists()
        return path if here or path.exists() or self.root is None else Path(self.root).expanduser() / self.name


class ModelConfig(Strict):
    """A network to train: ``source:name`` with random or pre-trained weights, or a checkpoint's path.

    Attributes:
        name: like certkd:mlp or timm:resnet18, a checkpoint's path, or file.py:Class for a class of the user's own,
            whose file is run.
        options: of the network, by name.
        normalize: put the data's normalisation in front of the network.
        pretrained: begin with the weights of the source.
        weights: a file of bare weights to begin with; a last linear layer of another number of classes begins with
            random weights.
        weights_key: the name of the weights in a file with several.
        output: the logits among several outputs of a class of the user's own.
        resize: side of the square images that the network is built for; the data's images are resized to it.
        initial: random weights as torch draws them, or those of certified training: N(0, 2 pi / fan_in^2) in all layers
            but the last, so that intervals keep their width (Shi et al., arXiv 2103.17268).
    """

    name: str = "certkd:mlp"
    options: dict[str, Any] = {}
    normalize: bool = True
    pretrained: bool = False
    weights: str | None = None
    weights_key: str | None = None
    output: str | int | None = None
    resize: Count | None = None
    initial: Literal["torch", "ibp"] = "torch"


class OptimizerConfig(Strict):
    """Any optimiser of timm, with momentum 0.9 where it has one, and the schedule of its learning rate.

    The rate rises linearly, step by step, in the first ``warmup`` epochs. A drop takes effect in the first epoch that
    begins after its share.

    Attributes:
        kind: of the optimizer: adam, adamw, sgd (with Nesterov momentum) or another name of timm, like lamb or lion.
        rate: the learning rate.
        weight_decay: part of the gradient for Adam and SGD; AdamW shrinks the weights instead.
        decay_norms: weight decay of biases and normalisation layers too; usually false for vision transformers.
        layer_decay: factor of the rate from each layer to the one before, for networks of timm, such as 0.75 where a
            pre-trained vision transformer is trained further (Bao et al., arXiv 2106.08254).
        schedule: of the rate: constant, drops at the milestones, or a half cosine to zero, step by step.
        milestones: shares of the epochs after which the rate drops.
        drop: the factor of each drop.
        warmup: number of first epochs in which the rate rises.
    """

    kind: Annotated[str, AfterValidator(_known_optimizer)] = "adam"
    rate: Positive = 2e-3
    weight_decay: Number = 0.0
    decay_norms: bool = True
    layer_decay: Annotated[Positive, Field(le=1)] | None = None
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[Milestone, ...] = (0.6, 0.85)
    drop: Annotated[Positive, Field(le=1)] = 0.1
    warmup: Number = 0.0

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> "OptimizerConfig":
        self.refuse_idle(
            {**dict.fromkeys(("milestones", "drop"), self.schedule == "steps"), "decay_norms": self.weight_decay > 0}
        )
        return self


class SelectionConfig(Strict):
    """The best epoch has the highest ``metric`` on the validation split.

    PGD accuracy ("pgd") is measured when eps is given, accuracy under Gaussian noise ("noisy") when sigma is. Without a
    metric it is "noisy" for objectives that train under noise, whose sigma is the default then, and "clean" for others.

    Attributes:
        metric: decides which epoch is the best.
        sigma: standard deviation of the noise, pixel units.
        eps: radius of the attack, pixel units.
        norm: of the attack.
        steps: of the attack.
    """

    metric: Literal["clean", "pgd", "noisy"] | None = None
    sigma: Positive | None = None
    eps: EpsilonText | None = None
    norm: Norm = Norm.LINF
    steps: Count = 10

    @model_validator(mode="after")
    def _metric_can_be_measured(self) -> "SelectionConfig":
        if self.metric == "pgd" and self.eps is None:
            raise ValueError("selection by pgd needs an eps")
        if self.metric == "noisy" and self.sigma is None:
            raise ValueError("selection by noisy needs a sigma")
        return self


class Threat(Strict):
    """The ball in which diagnostics attack a network in training.

    Attributes:
        eps: its radius, pixel units.
        norm: its norm.
        steps: of the attack.
    """

    eps: Radius
    norm: Norm = Norm.LINF
    steps: Count = 10


class Recipe(Strict):
    """Settings of a training that do not depend on its objective.

    Attributes:
        optimizer: its rate and schedule.
        epochs: number of passes over the training images.
        batch_size: number of images in a step.
        augment: of the training images: crop-flip pads, crops and mirrors them; resized-crop cuts a part of the image
            in its file and resizes it, mirrored or not, as usual for ImageNet; rand-augment is that and RandAugment.
        precision: of matrix products and convolutions in the losses; weights stay in float32, and so do finite
            differences.
        average: the network that is measured, saved and returned: the trained one, an exponential moving average of it
            (ema), or the mean of its epochs (swa).
        average_decay: of ema.
        average_from: share of the epochs after which averaging begins; 0 for ema and 0.75 for swa when absent.
        loaders: processes that read and augment images ahead of the training, for data sets in folders.
        accumulate: number of parts in which a batch is processed, to save memory.
        compile: forward passes by ``torch.compile``; not for objectives that need second derivatives.
        channels_last: the memory layout that convolutions on GPUs prefer.
        quantize: weights and inputs of layers are rounded to 8 bits in forward passes, as in an int8 copy, with the
            range of each batch (quantisation-aware training); the weights that are saved are not rounded.
    """

    optimizer: OptimizerConfig = OptimizerConfig()
    epochs: Count = 60
    batch_size: Count = 128
    augment: Literal["none", "crop-flip", "resized-crop", "rand-augment"] = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    average: Literal["none", "ema", "swa"] = "none"
    average_decay: Annotated[Number, Field(lt=1)] = 0.999
    average_from: Annotated[Number, Field(lt=1)] | None = None
    loaders: CountOrZero = 0
    accumulate: Count = 1
    compile: bool = False
    channels_last: bool = False
    quantize: Literal["none", "int8"] = "none"

    @model_validator(mode="after")
    def _settings_fit(self) -> "Recipe":
        if self.optimizer.warmup and self.optimizer.warmup >= self.epochs:
            raise ValueError(f"a warm-up of {self.optimizer.warmup:g} epochs does not end in {self.epochs}")
        self.refuse_idle({"average_decay": self.average == "ema", "average_from": self.average != "none"})
        return self


class TrainConfig(Recipe):
    """All settings of one training; the argument of ``certkd.train``.

    Attributes:
        objective: the terms of the loss; 'certkd objectives' lists the kinds.
        seed: keys initial order, attacks, noise and augmentation.
        selection: decides which epoch is the best.
        threat: the ball in which diagnostics attack; that of the selection or of the objective when absent.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Example:
        >>> TrainConfig(objective=Kdiga(), epochs=30, optimizer=OptimizerConfig(rate=1e-3))
    """

    objective: AnyObjective
    seed: Seed = 0
    selection: SelectionConfig = SelectionConfig()
    threat: Threat | None = None
    device: str = "auto"


class TrainJob(TrainConfig):
    """One training as a file describes it: ``certkd train --config``.

    Attributes:
        out: the folder of its outputs.
        model: the network to train.
        data: the data set.
        teacher: the teacher's checkpoint.
        teacher_arch: the network of the teacher's bare weights.
        natural_teacher: the checkpoint of a second teacher, for objectives that have one.
    """

    out: Annotated[str, Field(examples=["runs/first"])]
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    teacher: str | None = None
    teacher_arch: str | None = None
    natural_teacher: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_experiment(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "students" in given and "objective" not in given:
            raise InputError("this is an experiment, with a teacher and students, not one training: use 'certkd run'")
        return given
