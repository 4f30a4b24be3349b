"""All public names, for `from nbtransfer.all import *` in notebooks"""

from .tasks import *
from .augmentation import *
from .loaders import *
from .folders import *
from .networks import *
from .pretraining import *
from .sources import *
from .adaptation import *
from .transfer import *
from .weights import *
from .finetuning import *
from .features import *
from .comparison import *
from .inference import *
from .similarity import *
from .outcomes import *
from .playground import *
from .files import *
from .pickles import *
