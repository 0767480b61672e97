from .method import UNLABELLED as UNLABELLED
from .method import WARM_UP as WARM_UP
from .method import FineTuning as FineTuning
from .method import FixMatch as FixMatch
from .method import PairedRows as PairedRows
from .method import SelfTuning as SelfTuning
from .method import paired_loader as paired_loader
