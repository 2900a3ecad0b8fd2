"""The options that networks may be built with, and their ranges.

A checkpoint or a configuration may come from anybody, and timm and torchvision take options that open files, fetch
weights or call functions. So only plain numbers and words of this table reach them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from verifiers.core.errors import InputError, did_you_mean, quoted

#: Largest width, number of layers, image side and number of entries in a list.
WIDEST, DEEPEST, LARGEST_SIDE, LONGEST = 1 << 20, 2000, 4096, 2000

Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _word(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _several(check: Check, longest: int = LONGEST) -> Check:
    return lambda value: isinstance(value, list | tuple) and len(value) <= longest and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


def _nothing(value: Any) -> bool:
    return value is None


Option = tuple[Check, str]
FLAG: Option = (lambda value: type(value) is bool, "true or false")
MAYBE: Option = (_either(FLAG[0], _nothing), "true, false or null")
WIDTH: Option = (_whole(1, WIDEST), f"a whole number from 1 to {WIDEST}")
DEPTH: Option = (_whole(-DEEPEST, DEEPEST), f"a whole number up to {DEEPEST}")
SHARE: Option = (_number(0.0, 1.0), "a number from 0 to 1")
RATIO: Option = (_number(0.001, 100.0), "a number from 0.001 to 100")
SCALE: Option = (_either(_number(0.0, 100.0), _nothing), "a number from 0 to 100 or null")
WIDTHS: Option = (_several(WIDTH[0]), f"a list of at most {LONGEST} whole numbers from 1 to {WIDEST}")
_few = _whole(1, 256)
FEW: Option = (_either(_few, _several(_few, 64)), "a whole number from 1 to 256, or a list of them")
_side = _whole(1, LARGEST_SIDE)
SIDES: Option = (_either(_side, _several(_side, 2)), f"one or two whole numbers from 1 to {LARGEST_SIDE}")
FLAGS: Option = (_several(FLAG[0], 3), "a list of true and false")
WIDTH_OR_MORE: Option = (_either(WIDTH[0], _several(WIDTH[0], 64)), f"{WIDTH[1]}, or a list of them")


def _of(*words: str) -> Option:
    return _word(*words), f"one of {', '.join(map(repr, words))}"


OWN: dict[str, dict[str, Option]] = {
    "mlp": {"hidden": WIDTHS},
    "aol": {"hidden": WIDTHS, "scale": RATIO},
    "cnn": {"width": WIDTH, "hidden": WIDTH},
    "resnet": {"depth": DEPTH, "width": WIDTH},
    "resnet18": {"width": WIDTH},
    "preact-resnet18": {"width": WIDTH},
    "wide-resnet": {"depth": DEPTH, "factor": WIDTH},
    "mobilenet-v2": {"width": RATIO},
    "resnet-2b": {"width": WIDTH},
    "resnet-4b": {"width": WIDTH},
    "cnn7": {"width": WIDTH, "hidden": WIDTH},
}
_DROPS = ("dropout", "attention_dropout", "dropout_aux", "drop_rate", "stochastic_depth_prob")
TORCHVISION: dict[str, Option] = {
    **dict.fromkeys(("transform_input", "aux_logits", "zero_init_residual", "memory_efficient"), FLAG),
    **dict.fromkeys(_DROPS, SHARE),
    "init_weights": MAYBE,
    "image_size": (_side, f"a whole number from 1 to {LARGEST_SIDE}"),
    "replace_stride_with_dilation": FLAGS,
    "width_mult": RATIO,
    "layer_scale": RATIO,
}
TIMM: dict[str, Option] = {
    **dict.fromkeys(("img_size",), SIDES),
    **dict.fromkeys(("patch_size", "window_size"), FEW),
    **dict.fromkeys(("embed_dim", "dims", "channels", "head_dim", "head_hidden_size", "num_features"), WIDTH_OR_MORE),
    **dict.fromkeys(("stem_width", "stem_size", "base_width", "growth_rate"), WIDTH),
    **dict.fromkeys(("depth", "num_blocks", "depth_token_only", "reg_tokens"), DEPTH),
    **dict.fromkeys(("depths", "num_heads", "layers", "block_config", "kernel_sizes", "cardinality", "bn_size"), FEW),
    **dict.fromkeys(("mlp_ratio", "mlp_ratio_token_only", "head_init_scale", "norm_eps", "eta"), SCALE),
    **dict.fromkeys(("init_values", "ls_init_value"), SCALE),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "drop_block_rate", "pos_drop_rate", "patch_drop_rate"), SHARE),
    **dict.fromkeys(("proj_drop_rate", "attn_drop_rate"), SHARE),
    **dict.fromkeys(
        ("qkv_bias", "qk_norm", "proj_bias", "class_token", "no_embed_class", "pre_norm", "final_norm"), FLAG
    ),
    **dict.fromkeys(("scale_attn_norm", "scale_mlp_norm", "dynamic_img_size", "dynamic_img_pad"), FLAG),
    **dict.fromkeys(("avg_down", "replace_stem_pool", "zero_init_last", "conv_mlp", "conv_bias", "use_grn"), FLAG),
    **dict.fromkeys(("always_partition", "strict_img_size", "swiglu_mlp", "scale_mlp", "use_abs_pos_emb"), FLAG),
    **dict.fromkeys(("use_rel_pos_bias", "use_shared_rel_pos_bias", "use_pos_embed", "tokens_norm", "stem_norm"), FLAG),
    **dict.fromkeys(("memory_efficient", "fix_stem", "head_norm_first", "pool_include_prefix"), FLAG),
    **dict.fromkeys(("fc_norm", "use_fc_norm"), MAYBE),
    "output_stride": (lambda value: type(value) is int and value in (8, 16, 32), "8, 16 or 32"),
    "global_pool": _of("", "avg", "max", "avgmax", "catavgmax", "fast", "token"),
    "pos_embed": _of("", "none", "learn"),
    "stem_type": _of("", "deep", "deep_tiered", "patch", "overlap", "overlap_tiered", "overlap_act"),
    "act_layer": _of(
        "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid", "hard_swish"
    ),
}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check the options of ``source:name`` against the table.

    Raises:
        InputError: an option is unknown or out of its range.
    """
    source, _, kind = name.partition(":")
    known = OWN.get(kind, {}) if source == "certkd" else {"torchvision": TORCHVISION, "timm": TIMM}.get(source, {})
    for option, value in options.items():
        if option not in known:
            near = did_you_mean(option[:100], sorted(known))
            near = near if len(known) < 10 else near.partition(" Known:")[0]
            raise InputError(f"{name} has no option {quoted(option)}.{near}")
        check, wanted = known[option]
        if not check(value):
            raise InputError(f"{name}: {option} must be {wanted}, got {quoted(value)}")
