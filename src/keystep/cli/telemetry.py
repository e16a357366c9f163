"""`--otel`: spans sent by OTLP over HTTP, to where the OTEL_* variables of the OpenTelemetry SDK say (http://localhost:4318 by default)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from keystep.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from keystep.run.tracing import Tracing

Otel = Annotated[
    bool, typer.Option("--otel", help="Send OpenTelemetry spans; OTEL_EXPORTER_OTLP_ENDPOINT says where.", rich_help_panel="Observability")
]
OtelContent = Annotated[
    bool, typer.Option("--otel-content", help="With prompts and answers in them.", rich_help_panel="Observability")
]  # fmt: skip


@contextmanager
def sent(otel: bool, content: bool) -> Iterator[Tracing | None]:
    """The tracing of one command, sent off before it ends; None where it was not asked for."""
    if not otel:
        if content:
            raise BadInput("says what spans hold", field="--otel-content", mend="add --otel")
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingExtra("--otel", "otel") from None
    from keystep.run.tracing import Tracing

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "keystep"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield Tracing(provider.get_tracer("keystep"), content=content)
    finally:
        provider.shutdown()
