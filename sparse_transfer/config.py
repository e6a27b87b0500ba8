"""The models of an experiment: what a YAML file may say, with every default in one place.

Nothing here imports torch. A field that defines a number is part of a run's identity (`plan.py`);
fields at their default are left out of it, so adding a field keeps old results valid. A default
never changes without raising the version of what it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
BatchSize = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """Base of all configuration: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class ModelSpec(Frozen):
    """An upstream model: a timm or torchvision architecture and where its weights come from.

    `name` is a timm name with or without tag (`resnet50.a1_in1k`), `torchvision:NAME` with or
    without tag (`torchvision:resnet50.imagenet1k_v1`), `hf-hub:org/name`, `local-dir:PATH`, or
    `checkpoint:ARM/METHOD` for what an earlier arm makes. `weights` is `pretrained` (the tag's
    own), `random` (initialised from the upstream seed) or the path of a `.safetensors` / `.pth`
    state dict.
    """

    name: str
    label: str = ""
    weights: str = "pretrained"
    kwargs: dict[str, JsonValue] = {}
    pretrained_cfg: dict[str, JsonValue] = {}

    @property
    def title(self) -> str:
        """The short name shown in tables."""
        return self.label or self.name


class Preprocess(Frozen):
    """How an image becomes a tensor, the same for train (before augmentation) and test.

    With `crop: center` the shorter side is resized to `resize` pixels and the central
    `image_size` square is taken (default of `resize`: image_size * 256 / 224); with `crop: none`
    the whole image is resized to the square.
    """

    image_size: int = Field(default=224, ge=8, le=1024)
    crop: Literal["center", "none"] = "center"
    resize: int | None = Field(default=None, ge=8, le=2048)
    interpolation: Literal["model", "bilinear", "bicubic"] = "model"
    normalise: Literal["model", "imagenet", "dataset"] = "model"

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side before the central crop."""
        return self.resize or round(self.image_size * 256 / 224)


class TaskRef(Frozen):
    """A task card, and how much of it to use.

    `train_images` takes a frozen stratified subset of the training part; `validation` holds out a
    frozen stratified share of what is left for choosing hyper-parameters.
    """

    name: str
    train_images: int | None = Field(default=None, ge=1)
    validation: Fraction = 0.0

    @property
    def title(self) -> str:
        """The name shown in lists: of a card's file without its folder."""
        return PurePath(self.name).stem if self.name.endswith((".yaml", ".yml")) else self.name


class Optimizer(Frozen):
    """The optimizer and its hyper-parameters, `lr` being the peak learning rate."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norm_and_bias: bool = False


class LrSchedule(Frozen):
    """The learning rate over training; `step` multiplies by `gamma` at the start of each epoch
    listed in `milestones` (epochs counted from 0); `cosine` and `linear` fall to the share `floor`
    of the peak."""

    name: Literal["constant", "cosine", "linear", "step"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    floor: Fraction = 0.0


class Training(Frozen):
    """What every gradient-descent training shares, upstream or downstream."""

    epochs: int | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Optimizer = Optimizer()
    schedule: LrSchedule = LrSchedule()
    label_smoothing: Fraction = 0.0
    clip_norm: float | None = Field(default=None, gt=0)
    accumulation: int = Field(default=1, ge=1, description="batches per optimizer step")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of averaged weights")
    precision: Literal["fp32", "bf16"] = "fp32"
    augment: Literal["none", "flip", "crop_flip", "random_resized_crop"] = "none"

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class Distillation(Frozen):
    """Learn from the model as it was loaded, dense and frozen, besides the labels (1503.02531).

    The loss is (1 - hardness) × cross-entropy + hardness × T² × KL(teacher ‖ student), both
    softened by the temperature T.
    """

    hardness: float = Field(default=0.5, gt=0, le=1)
    temperature: float = Field(default=2.0, gt=0)


class Recipe(Training):
    """How an upstream model is trained while it is pruned; shared by all compared methods.

    `keep_dense` names what no method may prune: `first_conv`, `head`, `depthwise`, or a regular
    expression over parameter names. With `lr_restarts: prune` the learning-rate schedule begins
    anew, without warm-up, after every event that removes weights, and ends at the next (GMP*).
    """

    distillation: Distillation | None = None
    lr_restarts: Literal["never", "prune"] = "never"

    kind: Literal["prune"] = "prune"
    name: str = "custom"
    version: int = 1
    source: str = ""
    deviations: str = ""
    keep_dense: tuple[str, ...] = ("first_conv", "head", "depthwise")


# `paper`: bilinear, but bicubic for weights that were imported from the layout of RigL.
Interpolation = Literal["model", "bilinear", "bicubic", "paper"]


class LinearProfile(Frozen):
    """Linear probing on frozen features: an SGD head and a logistic regression, both always."""

    kind: Literal["linear"] = "linear"
    name: str = "custom"
    version: int = 1
    source: str = ""
    deviations: str = ""
    epochs: int = Field(default=150, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    milestones: tuple[int, ...] = (51, 101)
    gamma: float = Field(default=0.1, gt=0, le=1)
    lbfgs_c: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    lbfgs_validation: float = Field(default=0.2, gt=0, lt=1)  # share of train that chooses C
    normalise: Literal["model", "imagenet", "dataset"] | None = None
    interpolation: Interpolation | None = None


class FullProfile(Training):
    """Full fine-tuning with the mask held fixed and a new dense head.

    `lr_grid`, if given, is searched once on the dense model of the same upstream seed 0 with the
    validation part, and the choice is shared by all methods. `card_lr` takes the learning rate
    from the task card where the card states one (the paper's 0.01 for Aircraft and Cars). `engine`
    says what computes it: PyTorch (`dense`), the sparse kernels, or what a fixed rule chooses
    (`engines.py`); results agree up to rounding.
    """

    kind: Literal["full"] = "full"
    name: str = "custom"
    version: int = 1
    source: str = ""
    deviations: str = ""
    lr_grid: tuple[float, ...] = ()
    card_lr: bool = False
    validation: Fraction = 0.0
    bn: Literal["train", "frozen", "recalibrated"] = "train"
    engine: Literal["auto", "dense", "sparse"] = "auto"
    normalise: Literal["model", "imagenet", "dataset"] | None = None
    interpolation: Interpolation | None = None

    @model_validator(mode="after")
    def _grid_needs_validation(self) -> FullProfile:
        if self.lr_grid and not self.validation:
            raise ValueError("`lr_grid` needs a `validation` share to choose on")
        return self

    @model_validator(mode="after")
    def _kernels_compute_in_fp32(self) -> FullProfile:
        if self.engine == "sparse" and self.precision != "fp32":
            raise ValueError(f"`engine: sparse` trains in fp32; choose `auto` for {self.precision}")
        return self


class OnlineProfile(Training):
    """Linear fine-tuning on line: the frozen backbone is recomputed each step, on augmented images.

    Only a new head is trained; the backbone stays in eval mode and gets no gradient.
    """

    kind: Literal["online"] = "online"
    name: str = "custom"
    version: int = 1
    source: str = ""
    deviations: str = ""
    normalise: Literal["model", "imagenet", "dataset"] | None = None
    interpolation: Interpolation | None = None


class FewShot(Frozen):
    """Accuracy by training images per class: a logistic regression on frozen features.

    Each of the `draws` is an order of the training images; its first k of every class are what a
    classifier of k shots sees, so k images are among the 2k of the same draw. `c` is the inverse
    regularisation strength at every k: one image of a class leaves none to choose it with.
    (With a MobileNetV2 on two small sets, accuracies moved by less than two points from C = 0.01
    to 10.)
    """

    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 4, 8, 16, 32), min_length=1
    )
    draws: int = Field(default=5, ge=2, le=100)
    c: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _shots_differ(self) -> FewShot:
        _refuse_equal("shots", self.shots, "list each once")
        return self


class MethodSpec(Frozen):
    """A pruning method with its options; `label` tells two variants of one method apart.

    `model` replaces the arm's upstream model for this row: a smaller dense net to compare with.
    """

    name: str
    label: str = ""
    options: dict[str, JsonValue] = {}
    model: ModelSpec | None = None

    @property
    def title(self) -> str:
        """The name shown in tables."""
        return self.label or self.name


class RecalibrateBn(Frozen):
    """Recompute batch-norm statistics on this many upstream training images after pruning."""

    images: int = Field(default=1000, ge=2)


class Upstream(Frozen):
    """The models to prune and the images to prune and score them on.

    Without a task nothing is trained or scored upstream: checkpoints are taken as they are.
    `evaluate` names further test sets of the same classes, such as `imagenet_v2_matched`; every
    checkpoint is scored on each, in a run of its own.
    """

    models: tuple[ModelSpec, ...] = Field(min_length=1)
    task: TaskRef | None = None
    evaluate: tuple[TaskRef, ...] = ()
    preprocess: Preprocess = Preprocess()

    @field_validator("evaluate", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _strings_to(value, "name")

    @model_validator(mode="after")
    def _rows_differ(self) -> Upstream:
        _refuse_equal("models", [model.title for model in self.models], "give each a `label`")
        further = [task.name for task in self.evaluate]
        _refuse_equal("evaluate", further, "list each once")
        if self.task is not None and self.task.name in further:
            raise ValueError(f"leave {self.task.name!r} out of `evaluate`: it is scored anyway")
        return self


class Prune(Frozen):
    """Methods × sparsities × seeds, and the same-recipe dense model once per seed.

    A sparsity is the share of prunable weights that are zero; for structured methods it is the
    share of the dense model's MACs that are removed. Methods without a target run once per seed.
    """

    dense: bool = True
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    sparsities: tuple[Fraction, ...] = ()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    recalibrate_bn: RecalibrateBn | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _strings_to(value, "name")

    @model_validator(mode="after")
    def _rows_differ(self) -> Prune:
        own = [m.title for m in self.methods if m.name != "dense" or m.model]
        has_dense = self.dense or len(own) < len(self.methods)  # it may be listed as well
        _refuse_equal("methods", own + ["dense"] * has_dense, "give each a `label`")
        _refuse_equal("sparsities", self.sparsities, "list each once")
        _refuse_equal("seeds", self.seeds, "list each once")
        return self


class Transfer(Frozen):
    """Tasks × modes × seeds. `linear`, `online`, `full`: profiles (a recipe's name or inline).

    `few_shot` adds curves over training images per class, on the features of the linear profile.
    `calibrate` fits a temperature on images that the scored model's head was not trained on: a part
    of train that `linear` holds out for it, and the task's `validation` part in the other modes.
    """

    tasks: tuple[TaskRef, ...] = Field(min_length=1)
    modes: tuple[Literal["linear", "linear-online", "full"], ...] = ("linear", "full")
    linear: LinearProfile = LinearProfile()
    online: OnlineProfile | None = None
    full: FullProfile | None = None
    few_shot: FewShot | None = None
    calibrate: bool = False
    preprocess: Preprocess = Preprocess()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)

    @field_validator("tasks", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return _strings_to(value, "name")

    @model_validator(mode="after")
    def _rows_differ(self) -> Transfer:
        _refuse_equal("tasks", [task.name for task in self.tasks], "list each once")
        _refuse_equal("seeds", self.seeds, "list each once")
        return self

    @model_validator(mode="after")
    def _modes_have_profiles(self) -> Transfer:
        if "full" in self.modes and self.full is None:
            raise ValueError("mode `full` needs a profile: `full: short` or `full: paper-full`")
        if "linear-online" in self.modes and self.online is None:
            raise ValueError("mode `linear-online` needs a profile: `online: paper-linear-online`")
        return self


class Bench(Frozen):
    """Latency measurements of every pruned model and its dense parent.

    `batch_size` is one number or several, each measured by itself. `idle_ms` adds batch 1 with a
    pause of so many milliseconds before every call: what a single request pays.
    """

    backends: tuple[str, ...] = ("dense",)
    batch_size: BatchSize | tuple[BatchSize, ...] = 16
    repeats: int = Field(default=30, ge=3, description="timed calls per model, interleaved")
    idle_ms: int = Field(default=0, ge=0, le=1000, description="0: back to back only")

    @property
    def regimes(self) -> dict[int, tuple[int, ...]]:
        """Images per call → milliseconds of idling before each call, one measurement for each."""
        made: dict[int, tuple[int, ...]] = {size: (0,) for size in self._sizes}
        if self.idle_ms:
            made[1] = (*made.get(1, ()), self.idle_ms)
        return made

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.batch_size,) if isinstance(self.batch_size, int) else self.batch_size

    @model_validator(mode="after")
    def _rows_differ(self) -> Bench:
        _refuse_equal("backends", self.backends, "list each once")
        _refuse_equal("batch_size", self._sizes, "list each once")
        if not self._sizes:
            raise ValueError("`batch_size` needs at least one number")
        return self


class Arm(Frozen):
    """One block of an experiment: everything in it is compared, nothing across blocks is."""

    name: str = "main"
    upstream: Upstream
    recipe: Recipe
    prune: Prune
    transfer: Transfer | None = None
    bench: Bench | None = None

    @model_validator(mode="after")
    def _training_needs_images(self) -> Arm:
        if self.upstream.task is None and (self.recipe.steps or self.recipe.epochs):
            raise ValueError("the recipe trains, so `upstream.task` must name a task")
        if self.upstream.task is None and self.prune.recalibrate_bn:
            raise ValueError("`recalibrate_bn` needs images: name a task in `upstream.task`")
        return self


class AnswerRow(Frozen):
    """One row of an answer: what a method of an arm reached in one mode, under a reader's name."""

    title: str
    arm: str
    method: str
    mode: Literal["upstream", "linear-sgd", "linear-lbfgs", "full"] = "upstream"


class Answer(Frozen):
    """One table over all arms with a sentence for each row, for experiments on a single task.

    Every row is compared with `reference`, the title of one of them, image by image. `candidates`
    are the titles among which the validation part chooses one to recommend. `headline` says what
    kind of experiment it is, `text` what the rows share, `left_out` which are not there, and why.
    """

    headline: str
    text: str = ""
    reference: str
    rows: tuple[AnswerRow, ...] = Field(min_length=1)
    candidates: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _titles_are_rows(self) -> Answer:
        titles = [row.title for row in self.rows]
        _refuse_equal("rows", titles, "give each its own `title`")
        for title in (self.reference, *self.candidates):
            if title not in titles:
                raise ValueError(f"{title!r} is not the title of a row")
        return self


class Experiment(Frozen):
    """A named list of arms; `notes` are printed at the top of the report.

    `answer` gathers rows of several arms into one table with sentences. `contrasts` are pairs of
    method labels declared in advance; the report compares all pairs and calls the others
    descriptive. `demo: true` withholds intervals and verdicts from the report.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str = ""
    notes: str = ""
    contrasts: tuple[tuple[str, str], ...] = ()
    demo: bool = False
    answer: Answer | None = None
    arms: tuple[Arm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _arm_names_differ(self) -> Experiment:
        _refuse_equal("arms", [arm.name for arm in self.arms], "give each its own `name`")
        return self


def _refuse_equal(field: str, values: Sequence[Any], remedy: str) -> None:
    """Two rows of one name would be counted as two measurements of one thing."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"`{field}` has {twice[0]!r} more than once: {remedy}")


def _strings_to(value: Any, field: str) -> Any:
    if isinstance(value, list | tuple):
        return tuple({field: item} if isinstance(item, str) else item for item in value)
    return value
