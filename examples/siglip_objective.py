"""SigLIP's pairwise sigmoid loss (Zhai et al. 2023) as a task of your own, in one file.

    openblip pretrain siglip_objective:recipe PAIRS.lance RUN --train.steps 500
    python siglip_objective.py PAIRS.lance RUN

Either trains, and goes on bit for bit with a run that was stopped; torchrun starts it in several
processes.
"""

import sys
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import logsigmoid

import openblip


@dataclass(frozen=True, kw_only=True)
class SigLipSettings:
    """The fields become flags: --objectives.bias -5."""

    bias: float = -10.0
    """What is added to every logit at first: most pairs of a batch do not match."""
    min_temperature: float = 0.01
    """The temperature is not learnt below this."""


class SigLipTask(openblip.Task[openblip.Batch]):
    """Every image with every text of the batch, those of all processes: does it match or not?"""

    needs = openblip.TaskNeeds(settings=SigLipSettings)
    trained_heads = ("itc",)

    def __init__(
        self, student: openblip.Med, settings: SigLipSettings, context: openblip.TaskContext
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.collectives = context.collectives
        self.bias = torch.nn.Parameter(torch.tensor(settings.bias))

    @torch.no_grad()
    def begin_step(self, position: openblip.StepPosition) -> None:
        """Before the forward: keep the temperature in its range."""
        self.student.temperature.clamp_(min=self.settings.min_temperature)

    def forward(
        self, batch: openblip.Batch, position: openblip.StepPosition
    ) -> openblip.StepOutput:
        """The mean over this process's images of -log sigmoid(+-logit), summed over the texts."""
        images = self.student.embed_images(self.student.encode_images(batch.images))
        texts = self.student.embed_texts(batch.tokens, batch.mask)
        texts = self.collectives.gather_with_gradient(texts)
        logits = images @ texts.T / self.student.temperature + self.bias
        first = self.collectives.rank * len(images)
        signs = torch.full_like(logits, -1.0)
        signs[:, first : first + len(images)].fill_diagonal_(1.0)
        loss = -logsigmoid(signs * logits).sum(dim=1).mean()
        terms = {"sigmoid": loss.detach(), "bias": self.bias.detach().clone()}
        return openblip.StepOutput(loss, terms)


def recipe(table: str) -> openblip.Recipe:
    """The recipe `tiny` with this loss, on a model that embeds and does nothing else."""
    tiny = openblip.recipes.tiny(table)
    model = replace(openblip.MedConfig.preset("tiny", image_size=64), heads=("itc",))
    return replace(tiny, task=SigLipTask, objectives=SigLipSettings(), model=model)


if __name__ == "__main__":
    result = openblip.train(recipe(sys.argv[1]), sys.argv[2])
    embeds = openblip.load(result.model_folder, device="cpu").embed_texts(["a red square"])
    print(f"{result.steps} steps; embeds as {tuple(embeds.shape)}")
