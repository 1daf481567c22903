"""Building models from pretrained weights or from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from model.backbones.base import Backbone, Log
from model.encoder import DualEncoder
from model.heads.base import Head
from model.settings import BACKBONES, HEADS, ModelSettings, PrecisionSettings, SettingsOf, head_names
from utils.checkpoints import load_checkpoint, without_objectives
from utils.errors import OptionError, WeightsError
from utils.settings import own_settings


def build_model(of: SettingsOf, log: Log = lambda _: None) -> DualEncoder:
    """A model with a pretrained backbone. Heads are initialised from torch's global generator, or loaded if the
    weights are a run's checkpoint.

    Args:
        of: `Options.of`, which returns the object of a settings class.
        log: receives remarks on what is read from a configuration, assumed, resized or skipped.

    Raises:
        OptionError: an unknown backbone or head.
        WeightsError: the weights can't be read or don't fit.
    """
    settings = of(ModelSettings)
    backbone = backbone_class(settings.backbone)
    model = with_heads(backbone.build(settings, own_settings(backbone, of), log), of)
    if Path(settings.pretrain_choice).is_file():
        model.load_heads(_weights_of_run(Path(settings.pretrain_choice)), log)
    return model


def _weights_of_run(file: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint of train.py or of the authors; empty for any other file with a CLIP."""
    try:
        return without_objectives(load_checkpoint(file))
    except WeightsError:
        return {}


def model_from_checkpoint(file: Path, of: SettingsOf) -> DualEncoder:
    """The model stored in a checkpoint, ours or the authors'.

    Args:
        of: `Options.of` of the run's options, with defaults for those that older runs lack.

    Raises:
        OptionError: an unknown backbone or head.
        WeightsError: the file can't be read, names or shapes don't fit the model, or image size, text length or
            vocabulary differ.
    """
    settings, content = of(ModelSettings), load_checkpoint(file)
    backbone = backbone_class(settings.backbone)
    model = with_heads(backbone.from_checkpoint(settings, own_settings(backbone, of), content, str(file)), of)
    model.load_published(without_objectives(content), str(file))
    return model


def backbone_class(name: str) -> type[Backbone]:
    """The class that `--backbone` names.

    Raises:
        OptionError: the backbone is unknown, or needs a variant, or doesn't take one.
    """
    backbone: type[Backbone] = BACKBONES[name]
    if backbone.takes_variant != (":" in name):
        form = f"{name}:NAME" if backbone.takes_variant else name.partition(":")[0]
        raise OptionError(f"--backbone {name}: give it as {form}")
    return backbone


def with_heads(backbone: Backbone, of: SettingsOf) -> DualEncoder:
    """A backbone with newly initialised heads.

    Raises:
        OptionError: an unknown head.
    """
    heads: dict[str, dict[str, Head]] = {}
    for name in head_names(of(ModelSettings).heads):
        if hasattr(nn.ModuleDict, name):
            raise OptionError(f"--heads: {name} is taken, give the head another name")
        head = HEADS[name]
        settings = own_settings(head, of)
        tokens = {"image": backbone.image_tokens, "text": backbone.text_tokens}
        heads[name] = {modality: head(backbone.width, count, settings) for modality, count in tokens.items()}
    return DualEncoder(backbone, heads, of(PrecisionSettings).precision)
