"""What recipes on image lists share: few labels, the network, and images decoded once."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.fingerprint import image_fingerprint
from ..data.image_lists import ImageLists, Row, read_image_names
from ..data.images import ImageRow, load_images
from ..data.rows import ChosenRows, tensor_loader
from ..errors import SettingsError
from ..networks.user_views import training_view
from ..networks.views import View, stored_size
from ..output import JobProgress
from .recipe import Evaluation, Recipe, RecipeData, Scores
from .scores import unscored
from .settings import ListSettings

LabelT = TypeVar("LabelT")


@dataclass(frozen=True, kw_only=True)
class ListRecipe(ListSettings, Recipe, Generic[LabelT]):
    """A recipe on a folder with train_LABELS.txt, train_100.txt, test.txt and optionally val.txt."""

    @abstractmethod
    def view(self) -> View:
        """The random view of training images; raises a :class:`.SettingsError` if ``augment`` cannot be used."""

    @abstractmethod
    def make_network(self) -> tuple[nn.Module, int]:
        """The network from views to features, and the number of features."""

    @abstractmethod
    def read_lists(self) -> ImageLists[LabelT]:
        """The lists of the folder."""

    @abstractmethod
    def describe(self, lists: ImageLists[LabelT]) -> Mapping[str, Any]:
        """The facts of a :class:`.RecipeData`."""

    @abstractmethod
    def make_loader(self, lists: ImageLists[LabelT], images: ChosenRows) -> DataLoader[Any]:
        """Training batches from the images, first those of the labelled rows and then those of the unlabelled."""

    @abstractmethod
    def score(self, rows: Sequence[Row[LabelT]], predicted: Tensor) -> Scores:
        """Evaluate the predictions for the rows."""

    @abstractmethod
    def truth(self, rows: Sequence[Row[LabelT]]) -> dict[str, Any]:
        """The true labels of the rows, as arguments of an :class:`.Evaluation`."""

    def read(self, progress: JobProgress) -> RecipeData:
        self.check_images()
        lists = self.read_lists()
        if self.patience is not None and not lists.validation:
            raise SettingsError(f"patience needs validation images: {self.data} has no val.txt")
        parts = {
            "labelled": lists.labelled,
            "unlabelled": lists.unlabelled,
            "validation": lists.validation,
            "test": lists.test,
        }
        sizes = [len(part) for part in parts.values()]
        rows = [row for part in parts.values() for row in part]
        images, digests = self._images(self.data, rows, progress)
        train = images.take(slice(len(lists.labelled) + len(lists.unlabelled)))
        *_, validation, test = images.split(sizes)
        return RecipeData(
            facts=self.describe(lists),
            sizes=dict(zip(parts, sizes, strict=True)),
            fingerprints={
                name: image_fingerprint(
                    [row.path for row in part],
                    part_digests,
                    [row.label for row in part if name != "unlabelled"],  # whose labels are not used
                )
                for (name, part), part_digests in zip(parts.items(), digests.split(sizes), strict=True)
            },
            loader=self.make_loader(lists, train),
            validation=self._evaluation(lists.validation, validation) if lists.validation else None,
            test=self._evaluation(lists.test, test),
        )

    def read_unseen(self, data: Path, facts: Mapping[str, Any], progress: JobProgress) -> Evaluation:
        rows = read_image_names(data, outside=self.outside)
        images, _ = self._images(data if data.is_dir() else data.parent, rows, progress)
        return Evaluation([row.path for row in rows], tensor_loader(images, batch_size=self.batch_size), unscored)

    def check_images(self) -> None:
        """Raise an error if the network or the view cannot be used, before images are read."""
        self.make_network()
        self.view()

    def example(self, facts: Mapping[str, Any], count: int) -> Tensor:
        stored = stored_size(self.image_size)
        return torch.rand(count, 3, stored, stored)

    def make_view(self, **options: Any) -> View:
        """The built-in view with these options, or the user's ``augment``."""
        stored = stored_size(self.image_size)
        return training_view(self.augment, self.image_size, (3, stored, stored), **options)

    def _evaluation(self, rows: Sequence[Row[LabelT]], images: ChosenRows) -> Evaluation:
        score = lambda predicted: self.score(rows, predicted)
        loader = tensor_loader(images, batch_size=self.batch_size)
        return Evaluation([row.path for row in rows], loader, score, **self.truth(rows))

    def _images(self, folder: Path, rows: Sequence[ImageRow], progress: JobProgress) -> tuple[ChosenRows, Tensor]:
        progress.start("Reading images", total=len(rows))
        return load_images(folder, rows, stored_size(self.image_size), progress.advance)
