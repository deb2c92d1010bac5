"""The recipe that a plan is made for: found by its name, with the sizes that a run would find."""

from dataclasses import replace
from pathlib import Path

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.beginnings import text_tokenizer
from openblip.checkpoints.reading import find_model, read_outline
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig
from openblip.recipes import named_recipe
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.runtime.errors import RecipeError
from openblip.runtime.references import is_reference
from openblip.training.build import begun_sizes, sized
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import RECIPE_FILE, read_recipe

# The smallest tokenizer that has the special tokens.
_ANY_VOCABULARY = 60


def find_recipe(name: str) -> Recipe:
    """The recipe of a preset, of `module:recipe`, of a YAML file, or of a run directory.

    Raises:
        RecipeError: there is none, or the file is no recipe.
    """
    if name in PRETRAIN_RECIPES or is_reference(name):
        return named_recipe(name, PRETRAIN_RECIPES, "not opened")
    path = Path(name)
    if path.is_dir():
        path = path / RECIPE_FILE
    if path.suffix in (".yaml", ".yml"):
        return read_recipe(path)
    raise RecipeError(
        f"{name}: no recipe. Give {', '.join(PRETRAIN_RECIPES)}, a recipe.yaml, a run directory or "
        "module:recipe"
    )


def resolved(recipe: Recipe) -> tuple[Recipe, TextTokenizer]:
    """The recipe with the model that it will train, and a tokenizer with its special tokens.

    What a tokenizer learns from captions is not looked at here: only its size counts.

    Raises:
        RecipeError: it trains neither a MED nor an ALBEF, or changes of low rank.
    """
    if recipe.lora.rank:
        raise RecipeError(
            f"lora.rank is {recipe.lora.rank}, and changes of low rank cannot be planned for: plan "
            "with --lora.rank 0 for all weights, which need more of everything"
        )
    if recipe.init_from is not None:
        outline = read_outline(find_model(recipe.init_from))
        config: object = outline.config
        tokenizer, vocab_size = outline.tokenizer, outline.tokenizer.vocab_size
    else:
        tokenizer, vocab_size = _tokenizer(recipe)
        config = recipe.model
    if recipe.needs.model is None or not isinstance(config, MedConfig | AlbefConfig):
        raise RecipeError(
            f"the task {recipe.task!r} from {recipe.init_from or 'fresh weights'} cannot be "
            "planned for; what can: tasks that learn from pairs, from a MED or an ALBEF"
        )
    whole = replace(
        recipe,
        model=begun_sizes(recipe, sized(config, recipe.data.image_size, vocab_size)),
        init_from=None,
        init_image=None,
        init_text=None,
        tokenizer=recipe.tokenizer or f"train:{vocab_size}",
    )
    return whole, tokenizer


def _tokenizer(recipe: Recipe) -> tuple[TextTokenizer, int]:
    """A tokenizer, and how many tokens that of the run will have."""
    if recipe.init_text is not None:
        tokenizer = text_tokenizer(recipe.init_text)
        return tokenizer, tokenizer.vocab_size
    size = recipe.trained_vocabulary
    if size is not None:
        return TextTokenizer.train(["a b"], _ANY_VOCABULARY), size
    assert recipe.tokenizer is not None, "a recipe with a model has a tokenizer"
    tokenizer = TextTokenizer.from_file(recipe.tokenizer)
    return tokenizer, tokenizer.vocab_size
