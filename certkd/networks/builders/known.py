"""The names of networks that sources offer."""

import re

from certkd.networks.builders.options import OWN
from certkd.networks.builders.own import is_own
from verifiers.core.errors import InputError, did_you_mean, quoted


def known_models(source: str) -> list[str]:
    """List the names that a source offers, with its prefix."""
    if source == "torchvision":
        import torchvision

        return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    if source == "timm":
        import timm

        return [f"timm:{name}" for name in timm.list_models()]
    return [f"certkd:{name}" for name in OWN]


def check_known(name: str) -> None:
    """Check that a source has a network of this name; a class of the user's own is not looked for.

    Raises:
        InputError: it has none; the message suggests the nearest known one.
    """
    source, _, rest = name.partition(":")
    if is_own(name):
        return
    if source == "timm":
        import timm

        known = timm.is_model(rest) or rest.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    else:
        known = source in ("certkd", "torchvision") and name in known_models(source)
    if not rest or not known:
        raise InputError(f"unknown network {quoted(name)}.{_suggest(name)}")


def _suggest(name: str) -> str:
    if (file := name.rstrip(":")).endswith(".py"):
        return f" Name the class in the file too, as in {quoted(file + ':Net')}."
    if (called := re.fullmatch(r"(.+\.py:\w+)\((.*)\)?", name)) is not None:
        return f" Options follow commas, as in {quoted(f'{called[1]},width=8')}."
    source, _, rest = name.partition(":")
    if rest and source in ("certkd", "torchvision", "timm"):
        known = known_models(source)
        if len(known) > 20:
            return did_you_mean(name, known).replace(f" Known: {', '.join(known)}.", f" {len(known)} are known.")
        return did_you_mean(name, known)
    hint = did_you_mean(name, [*known_models("certkd"), *OWN]).partition(" Known:")[0]
    names = "certkd:mlp, torchvision:resnet18, timm:vit_tiny_patch16_224, net.py:Net, or a checkpoint's path"
    return f"{hint} Names look like {names}."
