"""What requests and answers look like; FastAPI makes the OpenAPI document of it."""

from typing import Annotated, Any

import pydantic
from pydantic import ConfigDict, Field


def request_model(*, max_inputs: int, max_chars: int, max_candidates: int) -> type[Any]:
    """Makes the model of a `POST /predict` body, with the service's limits in it.

    Args:
      max_inputs: the most inputs of a request.
      max_chars: the most characters of an input.
      max_candidates: the most labels of a request's own label set; 0 allows none.
    """
    text = Annotated[str, Field(min_length=1, max_length=max_chars)]
    label = Annotated[str, Field(min_length=1, max_length=1000)]
    labels = Annotated[list[label], Field(min_length=2, max_length=max(2, max_candidates))] | None

    class DetailedInput(pydantic.BaseModel):
        """An input with its own candidates or rationale."""

        model_config = ConfigDict(extra="forbid", strict=True)

        input: text = Field(description="the input, without task prefix")
        candidates: labels = Field(None, description="its closed label set")
        rationale: Annotated[str, Field(max_length=max_chars)] | None = Field(
            None, description="an explanation to read, for students of the method rationale_input"
        )

    class PredictRequest(pydantic.BaseModel):
        """One input, or many."""

        model_config = ConfigDict(
            extra="forbid",
            strict=True,
            json_schema_extra={
                "examples": [
                    {"inputs": "Ann has 2 apples and buys 3. How many are there?"},
                    {"inputs": ["first input", "second input"], "explain": True},
                ]
            },
        )

        inputs: (
            text | Annotated[list[text | DetailedInput], Field(min_length=1, max_length=max_inputs)]
        ) = Field(description="an input, or a list of them")
        explain: bool = Field(False, description="also write the rationales")
        truncate: bool = Field(
            False, description="cut inputs that are too long, instead of refusing them"
        )
        candidates: labels = Field(
            None, description="a closed label set for all inputs that bring none"
        )

    return PredictRequest


class Prediction(pydantic.BaseModel):
    """The answer to one input."""

    label: str
    confidence: float = Field(
        ge=0,
        le=1,
        description="the label's probability: among the candidates where there are some, else "
        "among all texts",
    )
    scores: dict[str, float] | None = Field(
        description="the probability of each candidate, where there are some"
    )
    rationale: str | None = Field(description="the student's explanation, if it was asked for")
    truncated: bool = Field(description="whether the input was cut to fit")


class PredictResponse(pydantic.BaseModel):
    """The answers, in the order of the inputs."""

    model: str
    predictions: list[Prediction]


class Health(pydantic.BaseModel):
    """How the service is."""

    status: str = Field(description="ready, warming up, shutting down, or failed")
    model: str
    compiled_shapes: int = Field(
        description="sizes of batches and inputs that programs are compiled for; others wait for "
        "these, padded or in turns"
    )
    shapes: int = Field(description="how many there will be, 0 before the first")


class Problem(pydantic.BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="one sentence")
