"""What the settings of every model have in common; the keys of each one's own stand in its file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from foundation.settings import Settings

Widths = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class ProductSettings(Settings):
    """One product of features: names of the contract on either side."""

    left: Annotated[list[str], Field(min_length=1)]
    right: Annotated[list[str], Field(min_length=1)]


class OuterSettings(Settings):
    """Keys of what stands around a network: the features it reads, and how a model is made of it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Model: the name of its file in `hinet_model/models/`."""
    joint: Literal[True, "per_scenario", "per_task"] = True
    """true: one model of all scenarios and tasks; else one model per scenario, or per task, with embeddings
    of its own each (the table is as many times as wide), trained side by side on the same batches."""
    match_parameters: Literal["hinet"] | dict[str, Any] | None = None
    """hinet: scale `expert_dims` until the dense parameters are as many (within 2 %) as those of a joint HiNet, of
    which this section says what it says of this model; a mapping, {sub_experts: 3} say, says the rest of it."""
    ctcvr: Literal["direct", "product"] = "direct"
    """product: the model learns the second task given the first, and answers with the product of both (ESMM,
    SIGIR 2018), so that P(ctcvr_task) <= P(ctr_task) always."""
    ctr_task: str | None = None
    """Task that comes first, for `ctcvr: product`: click."""
    ctcvr_task: str | None = None
    """Task that presupposes it, for `ctcvr: product`: order."""
    normalisation: Literal["none", "layer", "scenario"] = "none"
    """Of the features that enter: layer: each row by itself; scenario: by running statistics and with scales
    of the row's scenario (partitioned normalisation of STAR). A row's score never depends on its batch."""
    unknown_scenario: str | None = None
    """Scenario as which a row of an unknown one is scored; null refuses such a row by name."""
    input_dropout: Rate = 0.0
    """Dropout on the features a row enters with."""
    embedding_dim: Count = 16
    """Width of an id feature's embedding."""
    embedding_dims: dict[str, Count] = Field(default={})
    """Widths of features that differ from `embedding_dim`, by name: {user_id: 32, gender: 8}. A history has the
    width of the feature whose values it holds. The table stays one: its rows are as wide as the greatest common
    divisor of all widths in use, at least 4 (or one width for all), and a wider value is several of them.
    `optimiser.table: adagrad` then keeps its accumulator for each of those, not for the value as a whole."""
    embedding_std: float = Field(default=0.01, gt=0.0, le=1.0)
    """Standard deviation of the normal distribution that embedding rows start from."""
    sequences: Literal["apart", "together"] = "apart"
    """Of histories with ages or kinds: together: the embeddings of a slot's item, age and kind, all of one width, are
    added before the slots are pooled, as those of positions are; apart: each is pooled by itself."""
    pooling: Literal["mean", "attention"] = "mean"
    """Of histories of a feature that rows have as well, items for one: attention: a slot counts as much as it goes
    with the row's own value, as in DIN (KDD 2018); mean: all alike, as the values of all other features do."""
    products: list[ProductSettings] = Field(default=[])
    """Products that join the features, number by number: [{left: [age_group, query], right: [item_id, cuisine]}] adds
    the sum of the left features' embeddings times the sum of the right ones'. All of one product are of one width.
    (NFM, SIGIR 2017, equation 4, between two groups.) A perceptron hardly finds products by itself."""
    warm_start: str | None = None
    """Registered model whose weights training begins with, `models:/hinet@champion` or `models:/hinet/3`: rows of the
    embedding table by the values they stand for, all else as it is. It must be of the same settings, scenarios and
    tasks; with `encoder: {from: previous}` in the contract its scores are unchanged before the first step."""


class ModelSettings(OuterSettings):
    """Keys that every model has; each derives its own from this, and adds what its network takes beside.

    A count is one integer for all scenarios and tasks, or where a model says so a mapping that names all.
    """

    expert_dims: Widths = Field(default=[128, 64])
    """Widths of the layers of an expert, or of whatever stands between the features and the towers; each is
    followed by ReLU."""
    tower_dims: list[Count] = Field(default=[64])
    """Hidden widths of a tower; the last layer to one logit is added to them."""
    expert_dropout: Rate = 0.0
    """Dropout after every layer of `expert_dims`."""
    tower_dropout: Rate = 0.0
    """Dropout after every hidden layer of the towers."""


def network_keys(settings: type[ModelSettings]) -> list[str]:
    """The keys that a model's network takes: all but those of what stands around it."""
    return [key for key in settings.model_fields if key not in OuterSettings.model_fields]
