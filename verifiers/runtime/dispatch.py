"""The base of classes that see every operator that torch runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that does without torch's compiler, whose import costs five CPU seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
