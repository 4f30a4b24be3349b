"""All public names, for `from nbtransfer.all import *` in notebooks"""

from .tasks import *
from .networks import *
from .pretraining import *
from .weights import *
from .finetuning import *
from .comparison import *
from .similarity import *
from .playground import *
