"""What the benchmark trains: overrides by name, sizes and numbers of steps."""

from collections.abc import Mapping
from typing import NamedTuple

Overrides = tuple[str, ...]

GREY: Overrides = (
    "data=fake",
    "data.channels=1",
    "data.height=28",
    "data.width=28",
    "data.test_images=100",
)
COLOR: Overrides = ("data=fake", "data.channels=3", "data.height=32", "data.width=32")
NETS: dict[str, Overrides] = {
    "mlp": ("model=mlp", "model.widths=[64,128,64]"),
    "convnet": ("model=convnet",),
}
# steps of a turn, by network and batch size
CASES = {("mlp", 128): 200, ("mlp", 512): 80, ("convnet", 128): 20}
WARMUP_STEPS = 10  # of a turn, not timed

IMAGES: Overrides = ("augment=[crop,flip,erase]", "mixup=on")
PENALTIES: Overrides = ("penalty=[l1,l2]",)
COSINE: Overrides = ("scheduler=cosine", "scheduler.warmup=10%")
SMOOTHING: Overrides = ("loss=smooth",)
DROPOUT: Overrides = ("model.dropout=0.1",)
EVERYTHING: Overrides = (*IMAGES, *PENALTIES, *COSINE, *SMOOTHING, *DROPOUT)
CHANNELS_LAST = "trainer.channels_last=true"
BF16 = "trainer.precision=bf16-mixed"
COMPILED = "trainer.compile=true"
OURS: dict[str, Overrides] = {
    "defaults": (),
    "defaults, l1 + l2": PENALTIES,
    "defaults, augmented and mixed": IMAGES,
    "everything on": EVERYTHING,
    "defaults, channels first": ("trainer.channels_last=false",),
    "defaults, 2 threads": ("trainer.threads=2",),
    "defaults, bfloat16": (BF16,),
    "defaults, compiled": (COMPILED,),
}

DEFAULTS = "defaults"
TRICKS: dict[str, Overrides] = {
    DEFAULTS: (),
    "crop": ("augment=crop",),
    "flip": ("augment=flip",),
    "erase": ("augment=erase",),
    "mixup": ("mixup=on",),
    "l1 + l2": PENALTIES,
    "smoothing": SMOOTHING,
    "dropout": DROPOUT,
    "cosine with warmup": COSINE,
    "everything": EVERYTHING,
}

DATASET_SIZES = (2_000, 60_000, 600_000)  # images
JPEG_FILES = 60_000


class Mode(NamedTuple):
    """A way to compute a step on a GPU.

    `tf32`: whether convolutions and matrix products may round to TF32; None leaves it to torch,
    which allows it for convolutions alone. `cuda_graphs`: compiled to CUDA graphs.
    """

    overrides: Overrides = ()
    tf32: bool | None = None
    cuda_graphs: bool = False


RECIPE_MODE = "bf16-mixed, channels last"
MODES = {
    "defaults": Mode(),
    "float32, no TF32": Mode(tf32=False),
    "TF32": Mode(tf32=True),
    "bf16-mixed": Mode((BF16,)),
    "channels last": Mode((CHANNELS_LAST,)),
    RECIPE_MODE: Mode((BF16, CHANNELS_LAST)),
    "compiled": Mode((COMPILED,)),
    "CUDA graphs": Mode(cuda_graphs=True),
}
RECIPE: Overrides = (
    "augment=[crop,flip]",
    "loss=smooth",
    "scheduler=cosine",
    "scheduler.warmup=5%",
    *MODES[RECIPE_MODE].overrides,
)


class GpuCase(NamedTuple):
    """What the part gpu trains, for how long.

    Each mode for so many timed steps; none is begun after `mode_seconds`, so that a slow GPU is
    measured in ten minutes, too. The recipe for as many epochs as fit in `recipe_seconds`.
    """

    images: int
    data: Overrides
    nets: Mapping[str, Overrides]
    steps: int
    mode_seconds: float
    recipe_seconds: float


CONVNET = "convnet"
RESNET = "resnet"
ON_GPU = GpuCase(
    images=50_000,
    data=(*COLOR, "data.images=50000", "data.test_images=10000"),
    # 0.65 GFLOPs for an image, nearly those of a ResNet-18 for CIFAR
    nets={CONVNET: ("model=convnet",), RESNET: ("model=resnet", "model.width=64")},
    steps=200,
    mode_seconds=330,
    recipe_seconds=150,
)
ON_CPU = "trainer.accelerator=cpu"
REHEARSAL = GpuCase(
    images=640,
    data=("data=fake", "data.images=640", "data.height=8", "data.width=8", "data.batch_size=16"),
    nets={
        CONVNET: ("model=convnet", "model.widths=[4]", ON_CPU),
        RESNET: ("model=resnet", "model.depth=8", "model.width=2", ON_CPU),
    },
    steps=3,
    mode_seconds=600,
    recipe_seconds=0,
)
