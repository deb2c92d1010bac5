"""Linear layers in 8-bit integers, for inference on the CPU.

The only file that imports `torchao`.
"""

import logging
from typing import TypeVar

from torch import nn

from openblip.errors import RecipeError, install_extra

Model = TypeVar("Model", bound=nn.Module)


def quantise(model: Model) -> Model:
    """The same model, its linear layers changed in place to multiply 8-bit integers.

    Weights are rounded per output channel when this is called, activations per token as they come
    (dynamic quantisation): nothing has to be calibrated, and a text does not depend on its batch.
    Everything else, the embeddings and with them the vocabulary's logits too, stays float32.
    Linear weights take a quarter of the memory. Many rows at once, as in the image encoder, are a
    little faster; a token at a time is slower (`benchmarks/results/int8.md`). Keep the float32
    model to train or to save: this one cannot.

    Args:
        model: a `Med` or any other, float32, on the CPU.

    Raises:
        RecipeError: if torchao is not installed, or the model is elsewhere or of another type.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype.itemsize != 4:
            raise RecipeError(
                f"{name} is {parameter.dtype} on {parameter.device}; int8 takes a float32 model "
                "on the CPU; elsewhere use bfloat16 or float16"
            )
    disabled = logging.root.manager.disable
    try:
        # Its import warns of kernels for GPUs, which a CPU does not need.
        logging.disable(logging.WARNING)
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise RecipeError(f"int8 needs torchao: {install_extra('int8')}") from error
    finally:
        logging.disable(disabled)
    quantize_(model.eval(), Int8DynamicActivationInt8WeightConfig())
    return model
