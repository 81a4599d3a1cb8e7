"""Silence chatter of transformers, peft and bitsandbytes that carries no news for the reader."""

import logging
import warnings


def quiet_libraries() -> None:
    """Call before peft or bitsandbytes is imported: bitsandbytes reports optional CPU kernels while it is imported."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # transformers' first one reports what a folder lacks, which `build` refuses in a sentence, the second one that a
    # model given a device is not sharded over several, which nobody asked for
    for name in (
        "bitsandbytes.backends.cpu.ops",
        "bitsandbytes.autograd._functions",
        "transformers.modeling_utils",
        "transformers.distributed.tensor_parallel",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ("Paged optimizers are not supported on CPU", "MatMul8bitLt: inputs will be cast"):
        warnings.filterwarnings("ignore", message, UserWarning)
    # Renamed in transformers; peft still asks for the old name, and both do the same.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
