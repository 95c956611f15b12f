"""What the benchmark trains: overrides by name, sizes and numbers of steps."""

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
OURS: dict[str, Overrides] = {
    "defaults": (),
    "defaults, l1 + l2": PENALTIES,
    "defaults, augmented and mixed": IMAGES,
    "everything on": EVERYTHING,
    "defaults, channels last": (CHANNELS_LAST,),
    "defaults, channels last, bfloat16": (CHANNELS_LAST, "trainer.precision=bf16-mixed"),
    "defaults, compiled": ("trainer.compile=true",),
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
