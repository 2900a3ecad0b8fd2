"""Find out whether a source's pre-trained weights are on this machine, without asking any other."""

from pathlib import Path
from typing import Any

import torch

from verifiers.core.errors import InputError


def check_present(name: str) -> None:
    """Check that the pre-trained weights of ``timm:NAME`` or ``torchvision:NAME`` need not be fetched.

    Other names pass, and so do networks that the source does not know or has no weights of: those are refused where
    they are built.

    Raises:
        InputError: they would have to be fetched.
    """
    source, _, rest = name.partition(",")[0].partition(":")
    if (source == "torchvision" and _lacks_torchvision(rest)) or (source == "timm" and _lacks_timm(rest)):
        raise InputError(f"the weights of {name} are not on this machine: add --download to fetch them")


def _lacks_torchvision(name: str) -> bool:
    from torchvision.models import get_model_weights, list_models

    if name not in list_models():
        return False
    weights: Any = get_model_weights(name)
    return bool(len(weights)) and not _is_fetched(weights.DEFAULT.url)


def _lacks_timm(name: str) -> bool:
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not timm.is_model(name):
        return False
    known: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or known.file or not (known.hf_hub_id or known.url):
        return False
    named = [known.hf_hub_filename] if known.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    places = [try_to_load_from_cache(known.hf_hub_id, file) for file in named] if known.hf_hub_id else []
    return not any(isinstance(place, str) for place in places) and not (known.url and _is_fetched(known.url))


def _is_fetched(url: str) -> bool:
    """Tell whether torch has a file of this name in its cache."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()
