"""Every model that a checkpoint may hold."""

from openblip.interop.assembly import build_empty
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.config import AlbefConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.nlvr import Nlvr, NlvrConfig
from openblip.model.vqa import Vqa, VqaConfig

AnyModel = Med | Vqa | Nlvr | Albef | DualEncoder
AnyConfig = MedConfig | VqaConfig | NlvrConfig | AlbefConfig | DualConfig


def empty_model(config: AnyConfig) -> AnyModel:
    """The model of a configuration on the meta device."""
    match config:
        case MedConfig():
            return build_empty(lambda: Med(config))
        case VqaConfig():
            return build_empty(lambda: Vqa(config))
        case NlvrConfig():
            return build_empty(lambda: Nlvr(config))
        case AlbefConfig():
            return build_empty(lambda: Albef(config))
        case DualConfig():
            return build_empty(lambda: DualEncoder(config))
